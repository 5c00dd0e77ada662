"""Decoding: exact colours for every kind of picture, and a clear word for every broken one."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vae_lab.data.decode import PictureOptions, UnreadableImageError, decode
from vae_lab.utils.errors import UsageError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


def saved(folder, picture, name="picture.png", **options):
    path = folder / name
    picture.save(path, **options)
    return path


def colours(path, size=1, **options):
    """Pixels as a nested list [row][column] of tuples."""
    pixels = decode(path, PictureOptions(image_size=size, **options))
    return [[tuple(colour) for colour in row] for row in pixels.transpose(1, 2, 0).tolist()]


def one(path, **options):
    return colours(path, **options)[0][0]


def test_half_transparent_red_over_white(tmp_path):
    path = saved(tmp_path, Image.new("RGBA", (3, 3), (255, 0, 0, 128)))
    assert one(path) == (255, 127, 127)
    assert one(path, background="black") == (128, 0, 0)
    assert one(path, background="#0000ff") == (128, 0, 127)


def test_transparent_grey_over_a_colour(tmp_path):
    assert one(saved(tmp_path, Image.new("LA", (2, 2), (100, 0))), background="red") == RED
    assert one(saved(tmp_path, Image.new("LA", (2, 2), (100, 255)))) == (100, 100, 100)


def test_the_colour_of_a_transparent_pixel_does_not_bleed(tmp_path):
    """Left half opaque red, right half transparent green: shrunk to one pixel there is no green in it."""
    picture = Image.new("RGBA", (8, 8), (0, 255, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 4, 8))
    red, green, blue = one(saved(tmp_path, picture))
    assert red == 255 and green == blue == pytest.approx(128, abs=1)


def png(width, height, depth, colours, rows, **chunks):
    """A PNG of these rows, each with its filter byte."""
    header = struct.pack(">2I5B", width, height, depth, colours, 0, 0, 0)
    parts = [("IHDR", header), *chunks.items(), ("IDAT", zlib.compress(rows)), ("IEND", b"")]
    packed = ((len(data), name.encode() + data) for name, data in parts)
    chunked = (struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body)) for size, body in packed)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunked)


def palette_picture():
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *BLUE])
    picture.putdata([0, 1])
    return picture


@pytest.mark.parametrize(
    ("name", "transparency", "expected"),
    [
        ("a.png", None, [RED, BLUE]),
        ("a.png", 1, [RED, WHITE]),
        ("a.gif", 1, [RED, WHITE]),
        ("a.png", bytes([128, 255]), [(255, 127, 127), BLUE]),
    ],
)
def test_a_palette_with_a_clear_colour_or_an_alpha_for_each(tmp_path, name, transparency, expected):
    path = saved(tmp_path, palette_picture(), name, **({} if transparency is None else {"transparency": transparency}))
    assert colours(path, size=2, fit="stretch")[0] == expected


def test_a_transparent_colour_of_an_rgb_picture(tmp_path):
    assert one(saved(tmp_path, Image.new("RGB", (2, 2), GREEN), transparency=GREEN)) == WHITE


@pytest.mark.parametrize(("level", "expected"), [(0, 0), (128, 0), (129, 1), (32896, 128), (65535, 255)])
def test_sixteen_bit_grey_keeps_its_scale(tmp_path, level, expected):
    path = saved(tmp_path, Image.fromarray(np.full((2, 2), level, np.uint16)))
    assert one(path) == (expected,) * 3


def test_sixteen_bit_grey_with_a_transparent_level(tmp_path):
    path = tmp_path / "grey.png"
    path.write_bytes(png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 32896, 257), tRNS=struct.pack(">H", 257)))
    assert colours(path, size=2, fit="stretch")[0] == [(128,) * 3, WHITE]


def test_one_bit_pictures(tmp_path):
    picture = Image.new("1", (2, 1))
    picture.putpixel((1, 0), 1)
    assert colours(saved(tmp_path, picture), size=2, fit="stretch")[0] == [BLACK, WHITE]


def test_cmyk_jpeg(tmp_path):
    """Cyan and magenta ink, no yellow, no black: blue."""
    path = saved(tmp_path, Image.new("CMYK", (16, 16), (255, 255, 0, 0)), "cmyk.jpg", quality=95)
    assert one(path) == pytest.approx(BLUE, abs=3)


def test_exif_orientation_6_is_a_turn_to_the_right(tmp_path):
    """Stored left red, right blue: shown, red is above."""
    picture, exif = Image.new("RGB", (2, 2), BLUE), Image.Exif()
    picture.paste(RED, (0, 0, 1, 2))
    exif[0x0112] = 6
    assert colours(saved(tmp_path, picture, exif=exif), size=2) == [[RED, RED], [BLUE, BLUE]]


@pytest.mark.parametrize(("name", "options"), [("a.gif", {}), ("a.png", {}), ("a.webp", {"lossless": True})])
def test_only_the_first_frame_of_an_animation(tmp_path, name, options):
    first, *others = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    assert one(saved(tmp_path, first, name, save_all=True, append_images=others, **options)) == RED


def wide():
    """Twice as wide as high: red, then green, then blue in the ratio 1 : 2 : 1."""
    picture = Image.new("RGB", (16, 8), GREEN)
    picture.paste(RED, (0, 0, 4, 8))
    picture.paste(BLUE, (12, 0, 16, 8))
    return picture


def test_pad_crop_and_stretch(tmp_path):
    path = saved(tmp_path, wide())
    rows = colours(path, size=16, background="black")
    assert rows == [[BLACK] * 16] * 4 + [[RED] * 4 + [GREEN] * 8 + [BLUE] * 4] * 8 + [[BLACK] * 16] * 4
    assert colours(path, size=8, fit="crop") == [[GREEN] * 8] * 8
    row = colours(path, size=32, fit="stretch")[16]
    assert (row[0], row[16], row[31]) == (RED, GREEN, BLUE)


def test_one_channel_is_the_luminance(tmp_path):
    pixels = decode(saved(tmp_path, Image.new("RGB", (2, 1), RED)), PictureOptions(4, channels=1, background="#808080"))
    assert pixels.shape == (1, 4, 4)
    assert pixels[0].tolist() == [[128] * 4, [76] * 4, [76] * 4, [128] * 4]


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA"]),
    options=st.builds(
        PictureOptions,
        image_size=st.integers(1, 24),
        channels=st.sampled_from([1, 3]),
        fit=st.sampled_from(["pad", "crop", "stretch"]),
        background=st.sampled_from(["white", "black"]),
    ),
)
def test_a_picture_of_one_colour_stays_that_colour(folder, size, mode, options):
    grey = 255 if options.background == "white" else 0
    path = saved(folder, Image.new("RGBA", size, (grey, grey, grey, 255)).convert(mode))
    pixels = decode(path, options)
    assert pixels.shape == (options.channels, options.image_size, options.image_size)
    assert (pixels == grey).all() and pixels.dtype == np.uint8 and pixels.flags.c_contiguous


def encoded(suffix):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, FORMATS[suffix])
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"short.{suffix}"
    path.write_bytes(encoded(suffix)[:-200])
    with pytest.raises(UnreadableImageError, match=rf"{path}: cannot be decoded \(.+\)\."):
        decode(path, PictureOptions(8))


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"II*\0" + bytes(99)], ids=["empty", "HTML", "TIFF"]
)
def test_a_file_of_no_allowed_format_is_named_whatever_its_suffix(tmp_path, content):
    path = tmp_path / "page.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=rf"{path}: not a picture in a supported format \(PNG, JPEG"):
        decode(path, PictureOptions(8))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"gone\.png: cannot be decoded \(.*No such file"):
        decode(tmp_path / "gone.png", PictureOptions(8))


def test_a_picture_above_max_pixels_is_named(tmp_path):
    path = saved(tmp_path, Image.new("L", (11, 10)))
    assert decode(path, PictureOptions(8, max_pixels=110)).shape == (3, 8, 8)
    with pytest.raises(UnreadableImageError, match=rf"{path}: 11x10 pixels, more than data\.max_pixels=109"):
        decode(path, PictureOptions(8, max_pixels=109))


@pytest.mark.parametrize(("side", "found"), [(10_000, "more than data.max_pixels=50000000"), (50_000, "exceeds limit")])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, side, found):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, 8, 0, b""))
    with pytest.raises(UnreadableImageError, match=rf"{path}: .*{found}"):
        decode(path, PictureOptions(8))


def test_a_flipped_bit_in_the_pixels_of_a_png_is_found(tmp_path):
    """Pillow's loading alone misses many of them."""
    path, content = tmp_path / "flipped.png", bytearray(encoded("png"))
    start = content.index(b"IDAT") + 4
    for place in range(start, len(content) - 16, 97):
        content[place] ^= 4
        path.write_bytes(content)
        with pytest.raises(UnreadableImageError, match=rf"{path}: cannot be decoded"):
            decode(path, PictureOptions(8))
        content[place] ^= 4


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"image_size": 0}, "1 or more"),
        ({"channels": 4}, r"1 \(grey\) or 3"),
        ({"fit": "squeeze"}, "pad, crop or stretch"),
        ({"background": "whitish"}, "a name or '#rrggbb'"),
        ({"background": "#ffffff00"}, "a name or '#rrggbb'"),
        ({"max_pixels": 0}, "1 to"),
        ({"max_pixels": 10**9}, "1 to [0-9]+, Pillow.s own limit"),
    ],
)
def test_an_option_out_of_range_is_named(option, expected):
    ((key, value),) = option.items()
    with pytest.raises(UsageError, match=rf"data\.{key}={value}: expected {expected}"):
        PictureOptions(**{"image_size": 8} | option)
