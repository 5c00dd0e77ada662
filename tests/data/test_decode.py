"""Decoding: exact colours for every kind of picture, and the reason why a broken one is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_lab.data.decode import SUFFIXES, PictureOptions, UnreadableImageError, decode
from vae_lab.utils.errors import UsageError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
HALF_RED = (255, 0, 0, 128)


def colours(path, size=1, **options):
    """Pixels as a nested list [row][column] of tuples."""
    pixels = decode(path, PictureOptions(image_size=size, **options)).pixels
    return [[tuple(colour) for colour in row] for row in pixels.transpose(1, 2, 0).tolist()]


def saved(folder, picture, name="picture.png", **options):
    picture.save(folder / name, **options)
    return folder / name


def row_of(mode, *values):
    picture = Image.new(mode, (len(values), 1))
    picture.putdata(values)
    return picture


def palette(*values):
    picture = row_of("P", *values)
    picture.putpalette([*RED, *BLUE])
    return picture


def grey16(*levels):
    return Image.fromarray(np.array([levels], np.uint16))


@pytest.mark.parametrize(
    ("picture", "saving", "options", "expected"),
    [
        (row_of("RGBA", HALF_RED), {}, {}, [(255, 127, 127)]),
        (row_of("RGBA", HALF_RED), {}, {"background": "black"}, [(128, 0, 0)]),
        (row_of("RGBA", HALF_RED), {}, {"background": "#0000ff"}, [(128, 0, 127)]),
        (row_of("LA", (100, 0), (100, 255)), {}, {"background": "red"}, [RED, (100, 100, 100)]),
        (row_of("RGB", GREEN, RED), {"transparency": GREEN}, {}, [WHITE, RED]),
        (palette(0, 1), {}, {}, [RED, BLUE]),
        (palette(0, 1), {"transparency": 1}, {}, [RED, WHITE]),
        (palette(0, 1), {"transparency": 1, "name": "a.gif"}, {}, [RED, WHITE]),
        (palette(0, 1), {"transparency": bytes([128, 255])}, {}, [(255, 127, 127), BLUE]),
        (row_of("1", 0, 1), {}, {}, [BLACK, WHITE]),
        (grey16(0, 128, 129, 32896, 65535), {}, {}, [(level,) * 3 for level in (0, 0, 1, 128, 255)]),
        (grey16(32896, 257), {"transparency": 257}, {}, [(128,) * 3, WHITE]),
        (row_of("RGB", RED, WHITE), {}, {"channels": 1}, [(76,), (255,)]),
        (row_of("RGBA", HALF_RED), {}, {"channels": 4}, [HALF_RED]),
        (palette(0, 1), {"transparency": 1}, {"channels": 4}, [(*RED, 255), (0, 0, 0, 0)]),
        (row_of("RGB", GREEN, RED), {}, {"channels": 4}, [(*GREEN, 255), (*RED, 255)]),
        (grey16(0, 2048, 4095, 9000), {}, {"range": (0, 4095)}, [(level,) * 3 for level in (0, 128, 255, 255)]),
        (grey16(0, 4095), {"name": "a.tif"}, {"range": (-4095, 4095)}, [(128,) * 3, WHITE]),
        (row_of("F", -1.0, 0.5, 1.0), {"name": "a.tiff"}, {"range": (0, 1)}, [BLACK, (128,) * 3, WHITE]),
        (grey16(0, 32896, 65535), {"name": "a.pgm"}, {}, [BLACK, (128,) * 3, WHITE]),
    ],
)
def test_every_kind_of_pixel_keeps_its_colour(tmp_path, picture, saving, options, expected):
    path = saved(tmp_path, picture, **saving)
    assert colours(path, size=len(expected), fit="stretch", **options)[0] == expected


def test_the_colour_of_a_transparent_pixel_does_not_bleed(tmp_path):
    """Left half opaque red, right half transparent green: shrunk to one pixel there is no green in it."""
    picture = Image.new("RGBA", (8, 8), (0, 255, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 4, 8))
    red, green, blue = colours(saved(tmp_path, picture))[0][0]
    assert red == 255 and green == blue == pytest.approx(128, abs=1)


def test_cmyk_jpeg(tmp_path):
    """Cyan and magenta ink, no yellow, no black: blue."""
    path = saved(tmp_path, Image.new("CMYK", (16, 16), (255, 255, 0, 0)), "cmyk.jpg", quality=95)
    assert colours(path)[0][0] == pytest.approx(BLUE, abs=3)


def test_exif_orientation_6_is_a_turn_to_the_right(tmp_path):
    """Stored left red, right blue: shown, red is above."""
    picture, exif = Image.new("RGB", (2, 2), BLUE), Image.Exif()
    picture.paste(RED, (0, 0, 1, 2))
    exif[0x0112] = 6
    assert colours(saved(tmp_path, picture, exif=exif), size=2) == [[RED, RED], [BLUE, BLUE]]


@pytest.mark.parametrize(("name", "options"), [("a.gif", {}), ("a.png", {}), ("a.webp", {"lossless": True})])
def test_only_the_first_frame_of_an_animation(tmp_path, name, options):
    first, *others = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    assert colours(saved(tmp_path, first, name, save_all=True, append_images=others, **options)) == [[RED]]


def test_pad_crop_and_stretch(tmp_path):
    """A picture twice as wide as high: red, then green, then blue in the ratio 1 : 2 : 1."""
    picture = Image.new("RGB", (16, 8), GREEN)
    picture.paste(RED, (0, 0, 4, 8))
    picture.paste(BLUE, (12, 0, 16, 8))
    path = saved(tmp_path, picture)
    rows = colours(path, size=16, background="black")
    assert rows == [[BLACK] * 16] * 4 + [[RED] * 4 + [GREEN] * 8 + [BLUE] * 4] * 8 + [[BLACK] * 16] * 4
    assert colours(path, size=8, fit="crop") == [[GREEN] * 8] * 8
    row = colours(path, size=32, fit="stretch")[16]
    assert (row[0], row[16], row[31]) == (RED, GREEN, BLUE)


def png_header(side):
    """A PNG of side x side grey pixels that holds none of them."""
    chunks = (b"IHDR" + struct.pack(">2I5B", side, side, 8, 0, 0, 0, 0), b"IDAT" + zlib.compress(b""), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "PNG, JPEG, WEBP, BMP, GIF"),
        (b"icns" + bytes(99), "cannot identify image file"),
        (b"II*\0" + bytes(99), ""),  # TIFF
        (png_header(10_000), r"10000x10000 pixels, more than data\.max_pixels=50000000"),
        (png_header(50_000), "exceeds limit"),
        (None, "No such file"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_picture_or_too_large_is_refused_whatever_its_suffix(tmp_path, content, reason):
    path = tmp_path / "page.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=rf"cannot be decoded as .*{reason}"):
        decode(path, PictureOptions(8))


def test_a_flipped_bit_in_the_pixels_of_a_png_is_found(tmp_path):
    """Pillow's loading alone misses many of them."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise))
    content = bytearray(path.read_bytes())
    for place in range(content.index(b"IDAT") + 4, len(content) - 16, 97):
        content[place] ^= 4
        path.write_bytes(content)
        with pytest.raises(UnreadableImageError):
            decode(path, PictureOptions(8))
        content[place] ^= 4


@pytest.mark.parametrize("name", ["a.tif", "a.tiff", "a.ppm", "a.pnm", "a.jfif", "a.jpe", "a.avif", "a.webp", "a.bmp"])
def test_formats_of_colour(tmp_path, name):
    if Path(name).suffix not in SUFFIXES:
        pytest.skip("this Pillow does not read it")
    options = {"format": "JPEG"} if name.startswith("a.j") else {}
    path = saved(tmp_path, Image.new("RGB", (16, 16), (200, 100, 50)), name, **options)
    assert colours(path)[0][0] == pytest.approx((200, 100, 50), abs=4)


def test_grey_and_black_and_white_formats(tmp_path):
    assert colours(saved(tmp_path, row_of("L", 7, 200), "a.pgm"), 2, fit="stretch")[0] == [(7,) * 3, (200,) * 3]
    assert colours(saved(tmp_path, row_of("1", 0, 1), "a.pbm"), 2, fit="stretch")[0] == [BLACK, WHITE]


def test_the_content_of_a_file_is_decoded_like_the_file(tmp_path):
    path = saved(tmp_path, row_of("RGB", RED, BLUE))
    assert np.array_equal(decode(path.read_bytes(), PictureOptions(4)).pixels, decode(path, PictureOptions(4)).pixels)


@pytest.mark.parametrize("page", [b"<html>not found</html>", b"\n <!DOCTYPE html>\n<title>"])
def test_a_page_that_a_server_sent_instead_is_called_one(tmp_path, page):
    (tmp_path / "a.jpg").write_bytes(page)
    with pytest.raises(UnreadableImageError, match=r"^is an HTML page, not a picture$"):
        decode(tmp_path / "a.jpg", PictureOptions(8))


@pytest.mark.parametrize(("fit", "corner"), [("pad", (0, 0, 255, 0)), ("crop", (*RED, 255)), ("stretch", (*RED, 255))])
def test_height_and_width_and_a_transparent_margin(tmp_path, fit, corner):
    path = saved(tmp_path, Image.new("RGB", (30, 10), RED))
    rows = colours(path, size=(9, 15), channels=4, fit=fit, background="blue")
    assert (len(rows), len(rows[0])) == (9, 15) and rows[0][0] == corner and rows[4][7] == (*RED, 255)


def test_grey_levels_beyond_16_bits_need_a_range(tmp_path):
    for number, picture in enumerate((row_of("F", -1.0, 0.5), row_of("I", 0, 70_000))):
        path = saved(tmp_path, picture, f"{number}.tif")
        with pytest.raises(UnreadableImageError, match=r"set data\.range=\[black,white\]"):
            decode(path, PictureOptions(8))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_size", 0),
        ("image_size", (8, 0)),
        ("range", (5, 5)),
        ("background", "whitish"),
        ("background", "#ffffff00"),
    ],
)
def test_an_option_out_of_range_is_named(key, value):
    with pytest.raises(UsageError, match=rf"data\.{key}=.*: expected"):
        PictureOptions(**{"image_size": 8} | {key: value})
