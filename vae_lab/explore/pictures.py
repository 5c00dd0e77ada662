"""Pictures as values of the page's components: data URIs, so that no files are left behind."""

from __future__ import annotations

import io

from PIL import Image
from torch import Tensor

from vae_lab.figures.canvas import data_uri, encode_png
from vae_lab.figures.mosaic import Mosaic, to_pixels

COLUMNS = 8
FRAME_MS = 60


def image_uri(image: Tensor) -> str:
    """Of one image (C, H, W), at its own size."""
    return data_uri(encode_png(to_pixels(image[None])[0]))


def grid_uri(images: Tensor, columns: int = COLUMNS) -> str:
    """Of images (N, C, H, W) in rows."""
    return data_uri(encode_png(Mosaic(images, columns, title="", xlabel="").pixels()))


def cell(x: float, y: float, count: int) -> int:
    """The image of a grid of `count` images at a position, in shares of the grid's width and height."""
    columns = min(count, COLUMNS)
    row, column = int(y * -(-count // columns)), int(x * columns)
    return min(max(row, 0) * columns + min(max(column, 0), columns - 1), count - 1)


def animation_uri(images: Tensor) -> str:
    """Of frames (N, C, H, W), there and back without end."""
    frames = [Image.fromarray(pixels) for pixels in to_pixels(images)]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=[*frames[1:], *frames[-2:0:-1]],
        duration=FRAME_MS,
        loop=0,
        lossless=True,
    )
    return data_uri(buffer.getvalue(), "webp")
