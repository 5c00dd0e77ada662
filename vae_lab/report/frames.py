"""Images packed into sheets, and pictures encoded in the smallest format."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vae_lab.figures.canvas import Pixels
from vae_lab.figures.mosaic import on_white, to_pixels

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"optimize": True}),
    ".webp": ("WEBP", {"quality": 90}),
    ".jpg": ("JPEG", {"quality": 90, "subsampling": 0}),  # colours as sharp as the rest
}
LARGEST_PNG = 3 * 2**18  # values: of larger sheets it is never the smallest, and takes seconds
FRAME_SIDE, THUMBNAIL_SIDE = 128, 48  # longest sides in pixels


def limited(images: Tensor, side: int) -> Tensor:
    """Images (N, C, H, W), reduced to at most `side` pixels; what is transparent becomes white."""
    shrink = min(1.0, side / max(images.shape[-2:]))
    if shrink == 1:
        return images
    size = [max(1, round(length * shrink)) for length in images.shape[-2:]]
    return torch.nn.functional.interpolate(on_white(images), size, mode="area")


def sheet(images: Tensor, columns: int) -> Pixels:
    """Images (N, C, H, W) in rows of `columns` without gaps, the last row filled with white: uint8 (h, w, 3)."""
    tiles = to_pixels(images)
    count, height, width = tiles.shape[:3]
    rows = math.ceil(count / columns)
    filled = np.full((rows * columns, height, width, 3), 255, np.uint8)
    filled[:count] = tiles
    grid = filled.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, 3)


def smallest(pixels: Pixels) -> tuple[bytes, str]:
    """The smallest of PNG, WebP and JPEG, and its suffix; the lossy ones at a quality that shows no artefacts."""
    is_grey = bool((pixels == pixels[..., :1]).all())
    image = Image.fromarray(pixels[..., 0] if is_grey else pixels)
    found = {}
    for suffix, (name, options) in FORMATS.items():
        if suffix == ".png" and pixels.size > LARGEST_PNG:
            continue
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        found[suffix] = buffer.getvalue()
    suffix = min(found, key=lambda it: len(found[it]))
    return found[suffix], suffix


def reduced(content: bytes, scale: float, quality: int) -> bytes:
    """A picture or an animation as WebP, its sides multiplied by `scale`."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        frames, durations = [], []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))
            durations.append(image.info.get("duration", 0))
    moving = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0} if frames[1:] else {}
    frames[0].save(buffer, "WEBP", quality=quality, **moving)
    return buffer.getvalue()
