"""Grids of images, bare or as an annotated figure; each image pixel is an exact square of whole pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from vae_lab.figures.canvas import DPI, Pixels, add_axes, blank_figure, styled

FRAME = 1  # grey pixels around each tile: white images need a visible edge
FRAME_GREY = 205
GAP = 12  # extra pixels between groups of rows or columns
MOSAIC_SIZE = 1000  # target length of the longer side, in pixels
SMALLEST_TILE, LARGEST_TILE = 48, 128  # a tick label fits below the smallest; above the largest, pixels look blocky
CAPTION, NAME = 24, 15  # heights in pixels of the two lines of text below an image
LETTER = 8  # largest width in pixels of a letter of a name


@dataclass(frozen=True)
class Mosaic:
    """Images in rows of `columns`, and the texts of the figure."""

    images: Tensor  # (N, C, H, W) in [0, 1]; C is 1 (grey) or 3 (colour)
    columns: int
    title: str
    xlabel: str
    ylabel: str = ""
    column_labels: Sequence[str] = ()
    row_labels: Sequence[str] = ()
    captions: Sequence[str] = ()  # below the last images
    names: Sequence[str] = ()  # below the captions, each cut to the width of its image
    cells: Sequence[int] = ()  # of each image, counted row by row; empty: one after the other
    gaps_below: Sequence[int] = ()  # rows
    gaps_right: Sequence[int] = ()  # columns

    def pixels(self, gap: int = GAP) -> Pixels:
        """The bare grid, uint8 (height, width, 3)."""
        scale, (tops, lefts) = self.magnification(), self._edges(gap)
        tiles = to_pixels(self.images).repeat(scale, axis=1).repeat(scale, axis=2)
        height, width = tiles.shape[1:3]
        pixels = np.full((tops[-1] + height + FRAME, lefts[-1] + width + FRAME, 3), 255, np.uint8)
        for cell, tile in zip(self._cells(), tiles, strict=True):
            top, left = tops[cell // self.columns], lefts[cell % self.columns]
            pixels[top - FRAME : top + height + FRAME, left - FRAME : left + width + FRAME] = FRAME_GREY
            pixels[top : top + height, left : left + width] = tile
        return pixels

    @styled
    def figure(self) -> Figure:
        """The grid with title, labels and captions."""
        room = CAPTION * bool(self.captions) + NAME * bool(self.names)
        pixels, (tops, lefts) = self.pixels(max(GAP, room)), self._edges(max(GAP, room))
        tile_height, tile_width = (self.magnification() * side for side in self.images.shape[-2:])
        height, width = pixels.shape[:2]
        figure = blank_figure()
        axes = add_axes(figure, 0, 0, width, height)
        axes.imshow(pixels, aspect="auto", interpolation="nearest", extent=(0, width, height, 0))
        axes.set(title=self.title, ylabel=self.ylabel)
        axes.set_xlabel(self.xlabel, labelpad=6 + room * 72 / DPI)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, pad=4)
        axes.set_xticks(lefts[: len(self.column_labels)] + tile_width / 2, self.column_labels)
        axes.set_yticks(tops[: len(self.row_labels)] + tile_height / 2, self.row_labels)
        for k, cell in enumerate(self._cells()[len(self.images) - len(self.captions) :]):
            text = self.captions[k] + (f"\n{_shortened(self.names[k], tile_width)}" if self.names else "")
            x, y = lefts[cell % self.columns] + tile_width / 2, tops[cell // self.columns] + tile_height + 4
            axes.text(x, y, text, ha="center", va="top", fontsize=7.5)
        return figure

    def magnification(self) -> int:
        """Integer factor that makes images legible and keeps the grid near MOSAIC_SIZE."""
        height, width = self.images.shape[-2:]
        wanted = round(MOSAIC_SIZE / max(self._num_rows() * height, self.columns * width))
        smallest = math.ceil(SMALLEST_TILE / max(height, width))
        largest = max(smallest, LARGEST_TILE // max(height, width))
        return min(max(wanted, smallest), largest)

    def _cells(self) -> Sequence[int]:
        return self.cells or range(len(self.images))

    def _num_rows(self) -> int:
        return 1 + max(self._cells()) // self.columns

    def _edges(self, gap: int) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
        """Top pixel of each row of tiles and left pixel of each column, frames excluded."""
        counts, gaps = (self._num_rows(), self.columns), (self.gaps_below, self.gaps_right)
        edges = []
        for count, side, after in zip(counts, self.images.shape[-2:], gaps, strict=True):
            pitches = np.full(count, self.magnification() * side + 2 * FRAME)
            pitches[list(after)] += gap
            edges.append(FRAME + np.cumsum(pitches) - pitches)
        rows, columns = edges
        return rows, columns


def on_white(images: Tensor) -> Tensor:
    """Pictures with an alpha channel, (N, 4, H, W), without it, (N, 3, H, W); others as they are."""
    return images[:, :3] * images[:, 3:] + (1 - images[:, 3:]) if images.shape[1] == 4 else images


def to_pixels(images: Tensor) -> Pixels:
    """(N, C, H, W) in [0, 1] to uint8 (N, H, W, 3); NaN becomes black, and what is transparent white."""
    pixels = on_white(images).nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.movedim(1, -1).expand(-1, -1, -1, 3).numpy()


def _shortened(name: str, pixels: int) -> str:
    """The name, truncated to a width in pixels."""
    most = max(2, pixels // LETTER)
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
