"""Image grids in which each image pixel is an exact square of whole pixels.

Images are float in [0, 1], `(N, C, H, W)` with C 1 (grey) or 3 (colour), on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_lab.figures.canvas import Pixels, add_axes, blank_figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase

FRAME = 1  # grey pixels around each tile: white images need a visible edge
FRAME_GREY = 205
GAP = 12  # extra pixels between groups of rows or columns
MOSAIC_SIZE = 1000  # target length of the longer side, in pixels
SMALLEST_TILE, LARGEST_TILE = 48, 128  # a tick label fits below the smallest; above the largest, pixels look blocky


class Mosaic(NamedTuple):
    """A picture of tiles, and their positions."""

    pixels: Pixels  # (height, width, 3)
    columns: NDArray[np.int_]  # left edge of each column of tiles, frame excluded
    rows: NDArray[np.int_]  # top edge of each row
    tile: tuple[int, int]  # height and width of one magnified image

    @property
    def column_centres(self) -> list[float]:
        """x coordinate of each column's label."""
        return [float(left + self.tile[1] / 2) for left in self.columns]

    @property
    def row_centres(self) -> list[float]:
        """y coordinate of each row's label."""
        return [float(top + self.tile[0] / 2) for top in self.rows]


def magnification(rows: int, columns: int, height: int, width: int) -> int:
    """Integer factor that makes images legible and keeps the grid near MOSAIC_SIZE."""
    wanted = round(MOSAIC_SIZE / max(rows * height, columns * width))
    smallest = math.ceil(SMALLEST_TILE / max(height, width))
    largest = max(smallest, LARGEST_TILE // max(height, width))
    return min(max(wanted, smallest), largest)


def to_pixels(images: Tensor) -> Pixels:
    """(N, C, H, W) in [0, 1] to uint8 (N, H, W, 3); NaN becomes black."""
    pixels = images.detach().nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.movedim(1, -1).expand(-1, -1, -1, 3).numpy()


def arrange(
    images: Tensor,
    columns: int,
    cells: Sequence[int] | None = None,
    *,
    gaps_below: Sequence[int] = (),
    gaps_right: Sequence[int] = (),
    gap: int = GAP,
) -> Mosaic:
    """Arrange (N, C, H, W) in a grid, row by row or in the given `cells`, with gaps after some rows and columns."""
    cells = range(len(images)) if cells is None else cells
    rows = 1 + max(cells) // columns
    scale = magnification(rows, columns, *images.shape[-2:])
    tiles = to_pixels(images).repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = tiles.shape[1:3]
    tops, lefts = _edges(rows, height, gaps_below, gap), _edges(columns, width, gaps_right, gap)
    pixels = np.full((tops[-1] + height + FRAME, lefts[-1] + width + FRAME, 3), 255, np.uint8)
    for cell, tile in zip(cells, tiles, strict=True):
        top, left = tops[cell // columns], lefts[cell % columns]
        pixels[top - FRAME : top + height + FRAME, left - FRAME : left + width + FRAME] = FRAME_GREY
        pixels[top : top + height, left : left + width] = tile
    return Mosaic(pixels, lefts, tops, (height, width))


def _edges(count: int, size: int, gaps_after: Sequence[int], gap: int) -> NDArray[np.int_]:
    """First pixel of each of `count` tiles along one axis."""
    shift = np.zeros(count, int)
    for index in gaps_after:
        shift[index + 1 :] += gap
    return FRAME + np.arange(count) * (size + 2 * FRAME) + shift


def draw(
    tiles: Mosaic,
    title: str,
    *,
    xlabel: str,
    ylabel: str = "",
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
) -> Axes:
    """Draw the tiles on a new figure, not yet fitted; axis units are pixels from the top left."""
    height, width = tiles.pixels.shape[:2]
    axes = add_axes(blank_figure(), 0, 0, width, height)
    axes.add_artist(_bitmap(tiles.pixels))
    axes.set(xlim=(0, width), ylim=(height, 0), xlabel=xlabel, ylabel=ylabel, facecolor="none")
    axes.set_title(title, loc="left")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=4)
    axes.set_xticks(tiles.column_centres[: len(column_labels)], column_labels)
    axes.set_yticks(tiles.row_centres[: len(row_labels)], row_labels)
    return axes


def _bitmap(pixels: Pixels) -> Artist:
    """Artist that copies pixels one to one onto the axes: imshow and figimage would resample them."""
    from matplotlib.artist import Artist

    class Bitmap(Artist):
        def draw(self, renderer: RendererBase) -> None:
            assert self.axes is not None
            graphics = renderer.new_gc()
            renderer.draw_image(graphics, round(self.axes.bbox.x0), round(self.axes.bbox.y0), upwards)
            graphics.restore()

    opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    upwards = np.ascontiguousarray(np.concatenate([pixels, opaque], axis=2)[::-1])
    artist = Bitmap()
    artist.set(zorder=-1, in_layout=False)
    return artist
