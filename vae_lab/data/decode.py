"""Decode one picture file: opaque, upright, square, 8 bits per channel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from vae_lab.utils.errors import UsageError

Fit = Literal["pad", "crop", "stretch"]
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_PILLOW_LIMIT = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow refuses larger pictures in any case


class UnreadableImageError(UsageError):
    """The file is not an intact picture of a supported format and size; the message gives path and reason."""


@dataclass(frozen=True)
class PictureOptions:
    """Options of decoding a picture to (channels, image_size, image_size).

    `fit`: how a picture is made square; `background`: a colour name or #rrggbb behind transparency and
    padding; `max_pixels`: maximum width x height. Raises UsageError.
    """

    image_size: int
    channels: int = 3
    fit: Fit = "pad"
    background: str = "white"
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        _require(self.image_size >= 1, "image_size", self.image_size, "1 or more")
        _require(self.channels in (1, 3), "channels", self.channels, "1 (grey) or 3 (colour)")
        _require(self.fit in get_args(Fit), "fit", self.fit, "pad, crop or stretch")
        _require(_is_opaque_colour(self.background), "background", self.background, "a name or '#rrggbb'")
        in_reach = 1 <= self.max_pixels <= _PILLOW_LIMIT
        _require(in_reach, "max_pixels", self.max_pixels, f"1 to {_PILLOW_LIMIT}, Pillow's own limit")


def decode(path: Path, options: PictureOptions) -> NDArray[np.uint8]:
    """Decode the file's first frame to pixels (C, H, W). Raises UnreadableImageError."""
    try:
        picture = _opaque(_load(path, options.max_pixels), options.background)
        pixels = np.asarray(_fit(picture.convert("L" if options.channels == 1 else "RGB"), options))
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"{path}: not a picture in a supported format ({', '.join(FORMATS)}).") from error
    except Exception as error:  # on a damaged file, Pillow's readers raise nearly any
        raise UnreadableImageError(f"{path}: cannot be decoded ({error or type(error).__name__}).") from error
    size = options.image_size
    return np.ascontiguousarray(pixels.reshape(size, size, options.channels).transpose(2, 0, 1))


def _load(path: Path, max_pixels: int) -> Image.Image:
    """The first frame, upright."""
    with Image.open(path, formats=FORMATS) as picture:
        # Only the header has been read, so a decompression bomb is refused at no cost.
        if picture.width * picture.height > max_pixels:
            found = f"{picture.width}x{picture.height} pixels"
            raise UnreadableImageError(f"{path}: {found}, more than data.max_pixels={max_pixels}.")
        picture.verify()  # the checksums of a PNG, which loading ignores
    with Image.open(path, formats=FORMATS) as picture:
        picture.load()
        return ImageOps.exif_transpose(picture)


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
    if not picture.mode.startswith("I"):
        return picture
    levels = np.asarray(picture).astype(np.int64).clip(0, 65535)
    grey = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if (transparent := picture.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    return grey


def _fit(picture: Image.Image, options: PictureOptions) -> Image.Image:
    size = options.image_size, options.image_size
    if options.fit == "stretch":
        return picture.resize(size, Image.Resampling.LANCZOS)
    if options.fit == "crop":
        return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    return ImageOps.pad(picture, size, Image.Resampling.LANCZOS, options.background)


def _is_opaque_colour(text: str) -> bool:
    try:
        return ImageColor.getcolor(text, "RGBA")[3:] == (255,)  # type: ignore[index]
    except ValueError:
        return False


def _require(holds: bool, key: str, found: object, expected: str) -> None:
    if not holds:
        raise UsageError(f"data.{key}={found}: expected {expected}.")
