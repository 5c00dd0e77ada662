"""Decode one picture file: opaque, upright, square, 8 bits per channel."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from vae_lab.data.regular_files import NotARegularFileError, TimedBytes, file_size, open_file
from vae_lab.utils.errors import UsageError

Fit = Literal["pad", "crop", "stretch"]
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
# Exceptions of Pillow's readers on damaged files, over all formats and versions.
READ_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, LookupError, ArithmeticError, MemoryError),
    *(TypeError, AttributeError, AssertionError, RuntimeError),
    *(struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning),
)
_ORIENTATION = 0x0112  # the EXIF tag
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG_BLOCK = 4096  # bytes between two checks of the time limit: a scan of ten bytes may touch every pixel
_PILLOW_LIMIT = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow refuses larger pictures in any case


class UnreadableImageError(UsageError):
    """The file is not an intact picture of a supported format and size; the message gives path and reason."""


@dataclass(frozen=True)
class PictureOptions:
    """Options of decoding a picture to (channels, image_size, image_size).

    `fit`: how a picture is made square; `background`: a colour name or #rrggbb behind transparency and
    padding; `max_pixels`: maximum width x height; `max_bytes`: maximum file size; `max_seconds`: maximum
    processor time per picture. Raises UsageError.
    """

    image_size: int
    channels: int = 3
    fit: Fit = "pad"
    background: str = "white"
    max_pixels: int = 50_000_000
    max_bytes: int = 100_000_000
    max_seconds: float = 30.0

    def __post_init__(self) -> None:
        _require(self.image_size >= 1, "image_size", self.image_size, "1 or more")
        _require(self.channels in (1, 3), "channels", self.channels, "1 (grey) or 3 (colour)")
        _require(self.fit in get_args(Fit), "fit", self.fit, "pad, crop or stretch")
        _require(_is_opaque_colour(self.background), "background", self.background, "a name or '#rrggbb'")
        in_reach = 1 <= self.max_pixels <= _PILLOW_LIMIT
        _require(in_reach, "max_pixels", self.max_pixels, f"1 to {_PILLOW_LIMIT}, Pillow's own limit")
        _require(self.max_bytes >= 1, "max_bytes", self.max_bytes, "1 or more")
        _require(self.max_seconds > 0, "max_seconds", self.max_seconds, "more than 0")

    @property
    def mode(self) -> str:
        """Pillow's image mode."""
        return "L" if self.channels == 1 else "RGB"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.image_size, self.image_size


def decode(path: Path, options: PictureOptions) -> NDArray[np.uint8]:
    """Decode the file's first frame to pixels (C, H, W). Raises UnreadablePicture."""
    pixels = np.asarray(_fit(_read(path, options), options))
    return np.ascontiguousarray(pixels.reshape(*options.size, options.channels).transpose(2, 0, 1))


def _read(path: Path, options: PictureOptions) -> Image.Image:
    """The opaque picture in the mode of the options, not yet resized."""
    try:
        picture = _load(path, _read_bytes(path, options.max_bytes), options)
        # Inside the try: Pillow reports a palette with too many alpha values only on conversion.
        return _opaque(picture, options.background).convert(options.mode)
    except UnreadableImageError:
        raise
    except TimeoutError as error:
        raise UnreadableImageError(
            f"{path}: takes longer than data.max_seconds={options.max_seconds} to read."
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(_too_large(path, "far too many", options.max_pixels)) from error
    except READ_ERRORS as error:
        raise UnreadableImageError(f"{path}: {_reason(error)}.") from error


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read the file. Raises UnreadablePicture if it is empty or too large."""
    with open_file(path) as file:
        size = file_size(file)
        if size > max_bytes:
            raise UnreadableImageError(f"{path}: {size} bytes, more than data.max_bytes={max_bytes}.")
        content = file.read(size)
    if not content:
        raise UnreadableImageError(f"{path}: the file is empty (0 bytes).")
    return content


def _load(path: Path, content: bytes, options: PictureOptions) -> Image.Image:
    """Decode all pixels and apply the EXIF orientation."""
    with Image.open(TimedBytes(content, options.max_seconds), formats=FORMATS) as picture:
        # Only the header has been read, so a decompression bomb is refused at no cost.
        if picture.width * picture.height > options.max_pixels:
            raise UnreadableImageError(_too_large(path, f"{picture.width}x{picture.height}", options.max_pixels))
        if picture.format == "PNG":
            check_png(content)
        elif picture.format in ("JPEG", "MPO"):  # MPO: a JPEG followed by further ones
            picture.decodermaxblock = _JPEG_BLOCK
        picture.load()
        return _upright(picture)


def _upright(picture: Image.Image) -> Image.Image:
    """Like ImageOps.exif_transpose, which rewrites the EXIF data and fails on tags that it cannot write."""
    transpose = _TRANSPOSES.get(picture.getexif().get(_ORIENTATION, 1))
    return picture.copy() if transpose is None else picture.transpose(transpose)


def _opaque(picture: Image.Image, background: str) -> Image.Image:
    """Convert to 8-bit grey or RGB, transparency composited on the background.

    Before resizing, which would blend the hidden colour of transparent pixels into their neighbours.
    """
    picture = _eight_bits(picture)
    if not picture.has_transparency_data:
        return picture if picture.mode == "L" else picture.convert("RGB")
    above = picture.convert("RGBA")
    below = Image.new("RGBA", above.size, background)
    return Image.alpha_composite(below, above).convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, 65535 / 257 = 255; Pillow's conversion clips it at 255."""
    if picture.mode == "F":
        return picture.convert("L")
    if not picture.mode.startswith("I"):
        return picture
    levels = np.asarray(picture).astype(np.int64).clip(0, 65535)
    grey = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if (transparent := picture.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    return grey


def _fit(picture: Image.Image, options: PictureOptions) -> Image.Image:
    if options.fit == "stretch":
        return picture.resize(options.size, Image.Resampling.LANCZOS)
    if options.fit == "crop":
        return ImageOps.fit(picture, options.size, Image.Resampling.LANCZOS)
    return _pad(picture, options)


def _pad(picture: Image.Image, options: PictureOptions) -> Image.Image:
    """Resize the whole picture and centre it. Like ImageOps.pad, which fails if a side rounds to 0 pixels."""
    scale = options.image_size / max(picture.size)
    inner = tuple(max(1, round(side * scale)) for side in picture.size)
    canvas = Image.new(options.mode, options.size, ImageColor.getcolor(options.background, options.mode))
    corner = ((options.image_size - inner[0]) // 2, (options.image_size - inner[1]) // 2)
    canvas.paste(picture.resize((inner[0], inner[1]), Image.Resampling.LANCZOS), corner)
    return canvas


def _too_large(path: Path, found: str, max_pixels: int) -> str:
    return f"{path}: {found} pixels, more than data.max_pixels={max_pixels}."


def _reason(error: Exception) -> str:
    if isinstance(error, NotARegularFileError):
        return f"expected a file, found {error}"
    if isinstance(error, UnidentifiedImageError):
        return f"not a picture in a supported format ({', '.join(FORMATS)})"
    return f"cannot be decoded ({error or type(error).__name__})"


def _is_opaque_colour(text: str) -> bool:
    try:
        return ImageColor.getcolor(text, "RGBA")[3:] == (255,)  # type: ignore[index]
    except ValueError:
        return False


def _require(holds: bool, key: str, found: object, expected: str) -> None:
    if not holds:
        raise UsageError(f"data.{key}={found}: expected {expected}.")


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def check_png(content: bytes) -> None:
    """Raise ValueError unless all chunks up to the last, IEND, are complete with correct checksums (PNG, 5.3)."""
    view, start, kind = memoryview(content), len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        if len(content) < start + 12:
            raise ValueError(f"the file is cut short at {len(content)} bytes")
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        if len(content) < end:
            raise ValueError(f"the file is cut short at {len(content)} bytes, within chunk {ascii(kind)[1:]}")
        if zlib.crc32(view[start + 4 : end - 4]) != struct.unpack_from(">I", content, end - 4)[0]:
            raise ValueError(f"the checksum of chunk {ascii(kind)[1:]} is wrong")
        start = end
