"""Decode one picture file: opaque, upright, square, 8 bits per channel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps

from vae_lab.utils.errors import UsageError

Fit = Literal["pad", "crop", "stretch"]
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


class UnreadableImageError(Exception):
    """The file is not an intact picture of a supported format and size; the message gives the reason."""


@dataclass(frozen=True)
class PictureOptions:
    """Options of decoding a picture to (channels, image_size, image_size).

    `fit`: how a picture is made square; `background`: a colour name or #rrggbb behind transparency and
    padding; `max_pixels`: maximum width x height. Raises UsageError.
    """

    image_size: int
    channels: Literal[1, 3] = 3
    fit: Fit = "pad"
    background: str = "white"
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UsageError(f"data.image_size={self.image_size}: expected 1 or more.")
        if not _is_opaque_colour(self.background):
            raise UsageError(f"data.background={self.background}: expected a name or '#rrggbb'.")


def decode(path: Path, options: PictureOptions) -> NDArray[np.uint8]:
    """Decode the file's first frame to pixels (C, H, W). Raises UnreadableImageError."""
    try:
        picture = _opaque(_load(path, options.max_pixels), options.background)
        picture = _fit(picture.convert("L" if options.channels == 1 else "RGB"), options)
    except Exception as error:  # on a damaged file, Pillow's readers raise nearly any
        reason = str(error) or type(error).__name__
        raise UnreadableImageError(f"cannot be decoded as {', '.join(FORMATS)} ({reason})") from error
    size = options.image_size
    return np.ascontiguousarray(np.asarray(picture).reshape(size, size, options.channels).transpose(2, 0, 1))


def _load(path: Path, max_pixels: int) -> Image.Image:
    """The first frame, upright."""
    with Image.open(path, formats=FORMATS) as picture:
        # Only the header has been read, so a decompression bomb is refused at no cost.
        if picture.width * picture.height > max_pixels:
            raise ValueError(f"{picture.width}x{picture.height} pixels, more than data.max_pixels={max_pixels}")
        picture.verify()  # the checksums of a PNG, which loading ignores
    with Image.open(path, formats=FORMATS) as picture:
        picture.load()
        return ImageOps.exif_transpose(picture)


def _opaque(picture: Image.Image, background: str) -> Image.Image:
    """Convert to 8-bit grey or RGB, transparency composited on the background.

    Before resizing, which would blend the hidden colour of transparent pixels into their neighbours.
    """
    if picture.mode.startswith("I"):  # 16-bit grey: 65535 / 257 = 255, where Pillow's conversion clips at 255
        levels, transparent = np.asarray(picture).astype(np.int64).clip(0, 65535), picture.info.get("transparency")
        picture = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
        if transparent is not None:
            picture.putalpha(Image.fromarray(levels != transparent))
    if not picture.has_transparency_data:
        return picture if picture.mode == "L" else picture.convert("RGB")
    above = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, background), above).convert("RGB")


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
