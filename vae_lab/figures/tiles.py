"""Figures made of images: reconstructions, samples, the latent grid, traversals, interpolations.

Images are float in [0, 1], `(..., C, H, W)` with C 1 (grey) or 3 (colour), on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vae_lab.figures.canvas import DPI, fit_axes, styled
from vae_lab.figures.mosaic import arrange, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = 24  # pixels for a line of text below a pair


@styled
def reconstructions(
    originals: Tensor,
    reconstructed: Tensor,
    log_px: Tensor | None = None,
    *,
    title: str = "Originals above their reconstructions",
    columns: int = 8,
) -> Figure:
    """Two tensors (N, C, H, W) as pairs, each with its number and, where given, its log_px (N,) in nats."""
    count, columns = len(originals), min(columns, len(originals))
    above = [2 * columns * (k // columns) + k % columns for k in range(count)]
    cells = above + [cell + columns for cell in above]
    rows = 2 * math.ceil(count / columns)
    images = torch.cat([originals, reconstructed])
    tiles = arrange(images, columns, cells, gaps_below=range(1, rows - 1, 2), gap=CAPTION)
    xlabel = "number of the image" + ("" if log_px is None else ", and its log p(x|z) in nats")
    axes = draw(tiles, title, xlabel=xlabel, row_labels=["original", "reconstruction"] * (rows // 2))
    axes.xaxis.labelpad = 6 + CAPTION * 72 / DPI
    for k, cell in enumerate(above):
        text = f"{k}" if log_px is None else f"{k}:  {_number(float(log_px[k]), 1)}"
        x, y = tiles.column_centres[cell % columns], tiles.rows[cell // columns + 1] + tiles.tile[0] + 4
        axes.text(x, y, text, ha="center", va="top", fontsize=7.5)
    return fit_axes(axes)


@styled
def samples(
    images: Tensor,
    *,
    title: str = "Samples from the prior",
    columns: int | None = None,
    numbered: bool = False,
) -> Figure:
    """(N, C, H, W) in a grid as square as N allows; `numbered` puts numbers along the edges."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    tiles = arrange(images, columns)
    firsts = range(0, len(images), columns)
    if not numbered:
        return fit_axes(draw(tiles, title, xlabel=f"{len(images)} images"))
    xlabel = "number of the sample = row + column"
    across, down = _numbers(range(columns)), _numbers(firsts)
    return fit_axes(draw(tiles, title, xlabel=xlabel, column_labels=across, row_labels=down))


@styled
def latent_grid(
    images: Tensor,
    values: Tensor,
    dims: Sequence[int] = (0, 1),
    *,
    quantiles: Tensor | None = None,
    title: str = "Latent space, decoded",
) -> Figure:
    """(n, n, C, H, W): row j from the bottom decodes z_dims[1] = values[j], column i z_dims[0] = values[i].

    With one dimension, (1, n, C, H, W). `values` (n,) are named on both axes, with the probability below
    each of them where `quantiles` (n,) gives it.
    """
    rows, columns = images.shape[:2]
    tiles = arrange(images.flip(0).flatten(0, 1), columns)
    values_text = [_number(value, 2) for value in values.tolist()]
    xlabel, below, beside = _latent(dims[0]), values_text, values_text[::-1]
    if quantiles is not None:
        xlabel += ", and the share of N(0, 1) below it"
        below = [f"{text}\n{q:.0%}" for text, q in zip(values_text, quantiles.tolist(), strict=True)]
    if rows == 1:
        return fit_axes(draw(tiles, title, xlabel=xlabel, column_labels=below))
    ylabel = _latent(dims[1])
    return fit_axes(draw(tiles, title, xlabel=xlabel, ylabel=ylabel, column_labels=below, row_labels=beside))


@styled
def traversals(
    images: Tensor,
    values: Tensor,
    dims: Sequence[int],
    kl: Tensor | None = None,
    *,
    title: str = "Traversals: one latent dimension moved at a time",
) -> Figure:
    """(D, n, C, H, W): row d decodes z_dims[d] = values (n,), the rest held; kl (D,) in nats, as sorted."""
    tiles = arrange(images.flatten(0, 1), images.shape[1])
    rows = [_latent(dim) for dim in dims]
    if kl is not None:
        rows = [f"{row}   KL {value:.1f}" for row, value in zip(rows, kl.tolist(), strict=True)]
    columns = [_number(value, 1) for value in values.tolist()]
    ylabel = "dimension" + ("" if kl is None else ", and its KL in nats")
    xlabel = "value of the dimension"
    return fit_axes(draw(tiles, title, xlabel=xlabel, ylabel=ylabel, column_labels=columns, row_labels=rows))


@styled
def interpolations(
    images: Tensor, originals: Tensor | None = None, *, title: str = "From one image to another"
) -> Figure:
    """(P, n, C, H, W): each row decodes the way between two latents; originals (P, 2, C, H, W) flank it."""
    pairs, steps = images.shape[:2]
    columns = [_number(step / max(steps - 1, 1), 1) for step in range(steps)]
    gaps: tuple[int, ...] = ()
    if originals is not None:
        images = torch.cat([originals[:, :1], images, originals[:, 1:]], dim=1)
        columns = ["original", *columns, "original"]
        gaps = (0, steps)
    tiles = arrange(images.flatten(0, 1), len(columns), gaps_right=gaps)
    xlabel = "share of the way from the left image's posterior mean to the right one's"
    ylabel, rows = "number of the pair", _numbers(range(pairs))
    return fit_axes(draw(tiles, title, xlabel=xlabel, ylabel=ylabel, column_labels=columns, row_labels=rows))


def _latent(dim: int) -> str:
    return f"$z_{{{dim}}}$"


def _numbers(values: Sequence[int]) -> list[str]:
    return [str(value) for value in values]


def _number(value: float, digits: int) -> str:
    """With a true minus sign, and no "-0"."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")
