"""Decoding: exact colours for every kind of picture, and a clear word for every broken one."""

import io
import os
import socket
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from scripts.stressing.fuzz_corpus import bitmap, png
from vae_lab.data.decode import PictureOptions, UnreadableImageError, _opaque, decode
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


def palette_picture():
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *BLUE])
    picture.putdata([0, 1])
    return picture


def test_a_palette_without_transparency(tmp_path):
    assert colours(saved(tmp_path, palette_picture()), size=2, fit="stretch")[0] == [RED, BLUE]


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_a_palette_with_a_transparent_colour(tmp_path, name):
    path = saved(tmp_path, palette_picture(), name, transparency=1)
    assert colours(path, size=2, fit="stretch")[0] == [RED, WHITE]


def test_a_palette_with_an_alpha_for_each_colour(tmp_path):
    path = saved(tmp_path, palette_picture(), transparency=bytes([128, 255]))
    assert colours(path, size=2, fit="stretch")[0] == [(255, 127, 127), BLUE]


def test_a_transparent_colour_of_an_rgb_picture(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (2, 2), GREEN), transparency=GREEN)
    assert one(path) == WHITE


@pytest.mark.parametrize(("level", "expected"), [(0, 0), (128, 0), (129, 1), (32896, 128), (65535, 255)])
def test_sixteen_bit_grey_keeps_its_scale(tmp_path, level, expected):
    path = saved(tmp_path, Image.fromarray(np.full((2, 2), level, np.uint16)))
    assert one(path) == (expected,) * 3


def test_sixteen_bit_grey_with_a_transparent_level(tmp_path):
    path = tmp_path / "grey.png"
    path.write_bytes(png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 32896, 257), tRNS=struct.pack(">H", 257)))
    assert colours(path, size=2, fit="stretch")[0] == [(128,) * 3, WHITE]


def test_modes_that_no_allowed_format_writes_are_known_too():
    assert _opaque(Image.new("I", (1, 1), 32896), "white").getpixel((0, 0)) == 128
    assert _opaque(Image.new("I;16B", (1, 1), 32896), "white").getpixel((0, 0)) == 128
    assert _opaque(Image.new("F", (1, 1), 77.0), "white").getpixel((0, 0)) == 77


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
    picture = Image.new("RGB", (32, 32), BLUE)
    picture.paste(RED, (0, 0, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, picture, "turned.jpg", exif=exif, quality=100, subsampling=0)
    shown = np.array(colours(path, size=32))
    assert shown[2, 16].tolist() == pytest.approx(RED, abs=5)
    assert shown[-3, 16].tolist() == pytest.approx(BLUE, abs=5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(tmp_path, orientation):
    noise = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(noise), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(colours(path, size=5), expected)


def test_only_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("a.gif", "a.png", "a.webp"):
        path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **LOSSLESS.get(name, {}))
        assert one(path) == RED


LOSSLESS = {"a.webp": {"lossless": True}}


def wide():
    """Twice as wide as high: red, then green, then blue in the ratio 1 : 2 : 1."""
    picture = Image.new("RGB", (16, 8), GREEN)
    picture.paste(RED, (0, 0, 4, 8))
    picture.paste(BLUE, (12, 0, 16, 8))
    return picture


def test_pad_puts_the_background_above_and_below_a_wide_picture(tmp_path):
    rows = colours(saved(tmp_path, wide()), size=16, background="black")
    assert all(colour == BLACK for row in rows[:4] + rows[12:] for colour in row)
    assert rows[4:12] == [[RED] * 4 + [GREEN] * 8 + [BLUE] * 4] * 8


def test_pad_puts_the_background_beside_a_high_picture(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (8, 16), RED))
    assert colours(path, size=16) == [[WHITE] * 4 + [RED] * 8 + [WHITE] * 4] * 16


def test_crop_keeps_the_middle(tmp_path):
    assert colours(saved(tmp_path, wide()), size=8, fit="crop") == [[GREEN] * 8] * 8


def test_stretch_keeps_both_ends(tmp_path):
    row = colours(saved(tmp_path, wide()), size=32, fit="stretch")[16]
    assert (row[0], row[16], row[31]) == (RED, GREEN, BLUE)


def test_one_channel_is_the_luminance(tmp_path):
    pixels = decode(saved(tmp_path, Image.new("RGB", (2, 1), RED)), PictureOptions(4, channels=1, background="#808080"))
    assert pixels.shape == (1, 4, 4)
    assert pixels[0].tolist() == [[128] * 4, [76] * 4, [76] * 4, [128] * 4]


options = st.builds(
    PictureOptions,
    image_size=st.integers(1, 24),
    channels=st.sampled_from([1, 3]),
    fit=st.sampled_from(["pad", "crop", "stretch"]),
    background=st.sampled_from(["white", "black"]),
)


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA"]),
    options=options,
)
def test_a_picture_of_one_colour_stays_that_colour(folder, size, mode, options):
    grey = 255 if options.background == "white" else 0
    path = saved(folder, Image.new("RGBA", size, (grey, grey, grey, 255)).convert(mode))
    pixels = decode(path, options)
    assert pixels.shape == (options.channels, options.image_size, options.image_size)
    assert (pixels == grey).all() and pixels.dtype == np.uint8 and pixels.flags.c_contiguous


@pytest.mark.parametrize("size", [(1000, 1), (1, 1000)])
def test_a_line_is_fitted_too(tmp_path, size):
    path = saved(tmp_path, Image.new("RGB", size, RED))
    assert {colour for row in colours(path, size=8) for colour in row} == {RED, WHITE}
    assert colours(path, size=8, fit="crop") == [[RED] * 8] * 8


def encoded(suffix):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    more = {"exif": exif} if suffix in ("jpg", "png", "webp") else {}
    Image.fromarray(noise).save(buffer, FORMATS[suffix], **more)
    return buffer.getvalue()


@settings(max_examples=150, deadline=None)
@given(suffix=st.sampled_from(sorted(FORMATS)), data=st.data())
def test_any_damage_is_a_picture_or_unreadable_never_another_error(folder, suffix, data):
    content = bytearray(encoded(suffix))
    places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(places, min_size=1, max_size=8)):
        content[place] = value
    content = content[: data.draw(st.integers(0, len(content)))]
    path = folder / f"damaged.{suffix}"
    path.write_bytes(content)
    try:
        pixels = decode(path, PictureOptions(image_size=8, max_pixels=100_000))
    except UnreadableImageError as error:
        assert str(path) in str(error)
    else:
        assert pixels.shape == (3, 8, 8)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"short.{suffix}"
    path.write_bytes(encoded(suffix)[:-200])
    with pytest.raises(UnreadableImageError, match=rf"{path}: cannot be decoded \(.+\)\."):
        decode(path, PictureOptions(8))


def test_an_empty_file_is_named(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(UnreadableImageError, match=rf"{path}: the file is empty \(0 bytes\)"):
        decode(path, PictureOptions(8))


def test_a_file_that_is_no_picture_is_named(tmp_path):
    path = tmp_path / "page.png"
    path.write_text("<html>not found</html>")
    with pytest.raises(UnreadableImageError, match=rf"{path}: not a picture in a supported format \(PNG, JPEG"):
        decode(path, PictureOptions(8))


def test_a_format_outside_the_list_is_refused_whatever_its_suffix(tmp_path):
    path = tmp_path / "tiff.png"
    Image.new("L", (2, 2)).save(path, "TIFF")
    with pytest.raises(UnreadableImageError, match="not a picture in a supported format"):
        decode(path, PictureOptions(8))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadableImageError, match="No such file"):
        decode(tmp_path / "gone.png", PictureOptions(8))


def test_a_picture_above_max_pixels_is_named(tmp_path):
    path = saved(tmp_path, Image.new("L", (11, 10)))
    assert decode(path, PictureOptions(8, max_pixels=110)).shape == (3, 8, 8)
    with pytest.raises(UnreadableImageError, match=rf"{path}: 11x10 pixels, more than data\.max_pixels=109"):
        decode(path, PictureOptions(8, max_pixels=109))


@pytest.mark.parametrize("side", [10_000, 50_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, 8, 0, b""))
    with pytest.raises(UnreadableImageError, match=rf"{path}: .* pixels, more than data\.max_pixels=50000000"):
        decode(path, PictureOptions(8))


def test_a_file_above_max_bytes_is_named_before_it_is_read(tmp_path):
    path = saved(tmp_path, Image.new("L", (4, 4)))
    size = path.stat().st_size
    assert decode(path, PictureOptions(8, max_bytes=size)).shape == (3, 8, 8)
    with pytest.raises(UnreadableImageError, match=rf"{path}: {size} bytes, more than data\.max_bytes={size - 1}"):
        decode(path, PictureOptions(8, max_bytes=size - 1))
    with path.open("r+b") as file:
        file.truncate(10**13)  # sparse: it takes no room
    with pytest.raises(UnreadableImageError, match="10000000000000 bytes, more than"):
        decode(path, PictureOptions(8))


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (os.mkfifo, "a named pipe"),
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "a device"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "a socket"),
    ],
    ids=["pipe", "folder", "device", "socket"],
)
def test_what_is_no_file_is_named_and_waits_for_nothing(tmp_path, monkeypatch, make, found):
    monkeypatch.chdir(tmp_path)  # the name of a socket has to be short
    path = Path("a.png")
    make(path)
    with pytest.raises(UnreadableImageError, match=rf"a\.png: expected a file, found {found}\."):
        decode(path, PictureOptions(8))


def test_a_pipe_put_in_place_of_a_file_while_it_is_opened_waits_for_nothing(tmp_path, monkeypatch):
    path, real = saved(tmp_path, Image.new("L", (4, 4))), Path.stat
    seen = real(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda self, **options: seen if self == path else real(self, **options))
    with pytest.raises(UnreadableImageError, match="found a named pipe"):
        decode(path, PictureOptions(8))


def test_a_link_to_a_file_is_that_file(tmp_path):
    saved(tmp_path, Image.new("RGB", (4, 4), RED))
    (tmp_path / "link.png").symlink_to("picture.png")
    assert one(tmp_path / "link.png") == RED
    (tmp_path / "nowhere.png").symlink_to("gone.png")
    with pytest.raises(UnreadableImageError, match=r"nowhere\.png: cannot be decoded .*No such file"):
        one(tmp_path / "nowhere.png")


def many_scans(side, count):
    """A progressive JPEG whose last scan is repeated: each repetition is work on every pixel."""
    buffer = io.BytesIO()
    Image.new("L", (side, side), 99).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * count + content[-2:]


@pytest.mark.parametrize("make", [many_scans, lambda side, count: empty_scans(side, 5 * count)], ids=["whole", "empty"])
def test_a_jpeg_of_very_many_scans_ends_within_its_bound(tmp_path, make):
    """Of 3 million pixels, so that without the bound it takes longer than anyone waits for a test."""
    path, start = tmp_path / "bomb.jpg", time.thread_time()
    path.write_bytes(make(1_800, 20_000))
    with pytest.raises(UnreadableImageError, match=rf"{path}: takes longer than data\.max_seconds=0\.3"):
        decode(path, PictureOptions(8, max_seconds=0.3))
    assert time.thread_time() - start < 1.5


def empty_scans(side, count):
    """The same with scans that are nothing but their ten bytes of header."""
    content = many_scans(side, 0)
    start = content.rindex(b"\xff\xda")
    return content[:-2] + content[start : start + 10] * count + content[-2:]


def test_a_run_length_bitmap_that_never_ends_is_cut_off(tmp_path):
    """Pillow decodes these in Python, two bytes at a time; here they only move to where they are."""
    content = bytearray(encoded_rle())
    path = tmp_path / "slow.bmp"
    path.write_bytes(bytes(content[:1078]) + b"\x00\x02\x00\x00" * 2_000_000)
    with pytest.raises(UnreadableImageError, match=r"takes longer than data\.max_seconds=0\.2"):
        decode(path, PictureOptions(8, max_seconds=0.2))


def encoded_rle():
    """A grey 4x4 bitmap of 8 bits, run-length encoded, which Pillow only reads."""
    return bitmap(4, 4, 8, 1, b"\x04\x63\x00\x00" * 4 + b"\x00\x01")


def test_a_run_length_bitmap(tmp_path):
    path = tmp_path / "a.bmp"
    path.write_bytes(encoded_rle())
    assert colours(path, size=4) == [[(0x63,) * 3] * 4] * 4


def test_no_flipped_bit_of_a_png_is_another_picture(tmp_path):
    """Every bit of the file: Pillow alone misses many of those in the pixels."""
    path, options = saved(tmp_path, palette_picture(), transparency=bytes([128, 255])), PictureOptions(4)
    content, whole = bytearray(path.read_bytes()), decode(path, options)
    for place in range(8 * len(content)):
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        with pytest.raises(UnreadableImageError):
            decode(path, options)
        content[place // 8] ^= 1 << place % 8
    path.write_bytes(content + b"and more")  # behind the end, where many programs leave something
    assert np.array_equal(decode(path, options), whole)


def test_more_alphas_than_a_palette_has_colours_are_named(tmp_path):
    """Found by scripts/stressing/fuzz.py: Pillow says so only when the picture is converted."""
    path = tmp_path / "palette.png"
    path.write_bytes(png(2, 1, 8, 3, b"\0\0\1", PLTE=bytes([*RED, *BLUE]), tRNS=bytes(257)))
    with pytest.raises(UnreadableImageError, match=rf"{path}: cannot be decoded \(palette index out of range\)"):
        decode(path, PictureOptions(8))


def test_a_second_header_behind_the_pixels_is_named(tmp_path):
    """Found by scripts/stressing/fuzz.py: colours by the first header, one clear colour of a palette by the second."""
    path, clear = tmp_path / "two.png", b"\0\xff"
    second = png(1, 1, 8, 3, b"\0\0", PLTE=bytes([*RED, *BLUE]), tRNS=clear * 2)[8:]
    path.write_bytes(png(1, 1, 8, 2, b"\0\1\2\3")[:-12] + second)
    with pytest.raises(UnreadableImageError, match=rf"{path}: cannot be decoded"):
        decode(path, PictureOptions(8))


def test_the_damaged_chunk_of_a_png_is_named(tmp_path):
    content = bytearray(encoded("png"))
    content[-30] ^= 4
    path = tmp_path / "flipped.png"
    path.write_bytes(content)
    with pytest.raises(
        UnreadableImageError, match=rf"{path}: cannot be decoded \(the checksum of chunk 'IDAT' is wrong"
    ):
        decode(path, PictureOptions(8))


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"max_bytes": 0}, "1 or more"),
        ({"max_seconds": 0}, "more than 0"),
        ({"max_seconds": float("nan")}, "more than 0"),
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
