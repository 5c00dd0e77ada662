"""Decode one picture: opaque unless wanted otherwise, upright, of one size, 8 bits per channel."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, features

from vae_lab.utils.errors import UsageError

Fit = Literal["pad", "crop", "stretch"]
Channels = Literal[1, 3, 4]
AVIF = "avif" in features.modules and features.check("avif")  # a Pillow before 11.3 warns of an unknown feature
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", *(["AVIF"] if AVIF else []))
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
    *([".avif"] if AVIF else []),
)
MODES: dict[int, str] = {1: "L", 3: "RGB", 4: "RGBA"}
SIXTEEN_BITS = 65535  # the largest level


class UnreadableImageError(Exception):
    """The file is not an intact picture of a supported format and size; the message gives the reason."""


class DecodedPicture(NamedTuple):
    pixels: NDArray[np.uint8]  # (C, H, W)
    peak: int | None  # the largest level of a grey picture of 16 bits


@dataclass(frozen=True)
class PictureOptions:
    """Options of decoding a picture to (channels, height, width).

    `image_size`: a side, or (height, width); `channels`: 4 keeps transparency; `fit`: how another aspect ratio is
    handled; `background`: a colour name or #rrggbb behind transparency and padding; `max_pixels`: maximum width x
    height; `range`: the levels that become black and white, of grey pictures of more than 8 bits. Raises UsageError.
    """

    image_size: int | tuple[int, int]
    channels: Channels = 3
    fit: Fit = "pad"
    background: str = "white"
    max_pixels: int = 50_000_000
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise UsageError(f"data.image_size={self.image_size}: expected 1 or more.")
        if not _is_opaque_colour(self.background):
            raise UsageError(f"data.background={self.background}: expected a name or '#rrggbb'.")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise UsageError(f"data.range={list(self.range)}: expected [black,white], the first below the second.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        height, width = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        return self.channels, height, width


def decode(source: Path | bytes, options: PictureOptions) -> DecodedPicture:
    """Decode the first frame of a file, or of its content. Raises UnreadableImageError."""
    try:
        return convert(_load(source, options.max_pixels), options)
    except Exception as error:  # on a damaged file, Pillow's readers raise nearly any
        if is_html(source):
            raise UnreadableImageError("is an HTML page, not a picture") from error
        reason = str(error) or type(error).__name__
        raise UnreadableImageError(f"cannot be decoded as {', '.join(FORMATS)} ({reason})") from error


def convert(picture: Image.Image, options: PictureOptions) -> DecodedPicture:
    """The pixels of an upright picture of any mode."""
    picture, peak = _eight_bits(picture, options)
    if options.channels != 4:
        picture = _opaque(picture, options.background)
    picture = _fit(picture.convert(MODES[options.channels]), options)
    channels, height, width = options.shape
    pixels = np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)
    return DecodedPicture(np.ascontiguousarray(pixels), peak)


def is_html(source: Path | bytes) -> bool:
    """Whether a file is a page that a server sent instead."""
    start = source[:512] if isinstance(source, bytes) else b""
    if isinstance(source, Path):
        with contextlib.suppress(OSError), source.open("rb") as file:
            start = file.read(512)
    return start.lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _load(source: Path | bytes, max_pixels: int) -> Image.Image:
    """The first frame, upright."""

    def opened() -> Image.Image:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)

    with opened() as picture:
        # Only the header has been read, so a decompression bomb is refused at no cost.
        if picture.width * picture.height > max_pixels:
            raise ValueError(f"{picture.width}x{picture.height} pixels, more than data.max_pixels={max_pixels}")
        picture.verify()  # the checksums of a PNG, which loading ignores
    with opened() as picture:
        picture.load()
        return ImageOps.exif_transpose(picture)


def _eight_bits(picture: Image.Image, options: PictureOptions) -> tuple[Image.Image, int | None]:
    """Grey levels of 16 or 32 bits, which Pillow's conversion clips at 255, as 8 bits; and the largest of 16 bits."""
    if not picture.mode.startswith(("I", "F")):
        return picture, None
    levels, transparent = np.asarray(picture).astype(np.float64), picture.info.get("transparency")
    low, high = options.range or (0, SIXTEEN_BITS)
    if not np.isfinite(levels).all():
        raise ValueError("some levels are not finite")
    if options.range is None and (picture.mode == "F" or levels.max() > SIXTEEN_BITS):
        raise ValueError(f"levels from {levels.min():g} to {levels.max():g}: set data.range=[black,white]")
    scaled = Image.fromarray((255 * (levels - low) / (high - low)).clip(0, 255).round().astype(np.uint8))
    if transparent is not None:
        scaled.putalpha(Image.fromarray(levels != transparent))
    return scaled, None if options.range else int(levels.max())


def _opaque(picture: Image.Image, background: str) -> Image.Image:
    """Convert to 8-bit grey or RGB, transparency composited on the background.

    Before resizing, which would blend the hidden colour of transparent pixels into their neighbours.
    """
    if not picture.has_transparency_data:
        return picture if picture.mode == "L" else picture.convert("RGB")
    above = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, background), above).convert("RGB")


def _fit(picture: Image.Image, options: PictureOptions) -> Image.Image:
    _, height, width = options.shape
    if options.fit == "stretch":
        return picture.resize((width, height), Image.Resampling.LANCZOS)
    if options.fit == "crop":
        return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    padding = (*ImageColor.getrgb(options.background)[:3], 0) if picture.mode == "RGBA" else options.background
    return ImageOps.pad(picture, (width, height), Image.Resampling.LANCZOS, padding)


def _is_opaque_colour(text: str) -> bool:
    try:
        return ImageColor.getcolor(text, "RGBA")[3:] == (255,)  # type: ignore[index]
    except ValueError:
        return False
