"""Figures of images: reconstructions, samples, the latent grid, traversals, interpolations, denoising.

Images are float in [0, 1], `(..., C, H, W)` with C 1 (grey) or 3 (colour), on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vae_lab.figures.canvas import DPI, fit_axes, styled
from vae_lab.figures.mosaic import arrange, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = 24  # height in pixels of a line of text below an image
NEXT_LINE = 15  # height in pixels of a second line
LETTER = 8  # largest width in pixels of a letter of it


@styled
def reconstructions(
    originals: Tensor,
    reconstructed: Tensor,
    log_px: Tensor | None = None,
    names: Sequence[str] = (),
    *,
    title: str = "Originals above their reconstructions",
    columns: int = 8,
) -> Figure:
    """Two tensors (N, C, H, W) as pairs, each with its index and, if given, its log_px (N,) in nats and class name."""
    captions = _numbers(range(len(originals)))
    xlabel = "image index"
    if log_px is not None:
        captions = [
            f"{caption}:  {_number(value, 1)}" for caption, value in zip(captions, log_px.tolist(), strict=True)
        ]
        xlabel += ", and log p(x|z) in nats"
    if names:
        xlabel += "; below, the class given to the model"
    stacks = {"original": originals, "reconstruction": reconstructed}
    return fit_axes(_stacked(stacks, captions, names, title=title, xlabel=xlabel, columns=columns))


@styled
def denoising(
    clean: Tensor, corrupted: Tensor, restored: Tensor, *, title: str = "Corrupted images restored", columns: int = 8
) -> Figure:
    """Three tensors (N, C, H, W): clean images, the corrupted ones that are encoded, and their reconstructions."""
    stacks = {"clean": clean, "corrupted": corrupted, "restored": restored}
    captions = _numbers(range(len(clean)))
    return fit_axes(_stacked(stacks, captions, title=title, xlabel="image index", columns=columns))


def _stacked(
    stacks: Mapping[str, Tensor],
    captions: Sequence[str],
    names: Sequence[str] = (),
    *,
    title: str,
    xlabel: str,
    columns: int,
) -> Axes:
    """Stacks of the k-th images of several (N, C, H, W), with a caption and optionally a name below each stack."""
    count, height = len(captions), len(stacks)
    columns = min(columns, count)
    top = [height * columns * (k // columns) + k % columns for k in range(count)]
    cells = [cell + layer * columns for layer in range(height) for cell in top]
    rows = height * math.ceil(count / columns)
    room = CAPTION + (NEXT_LINE if names else 0)
    tiles = arrange(
        torch.cat(list(stacks.values())), columns, cells, gaps_below=range(height - 1, rows - 1, height), gap=room
    )
    axes = draw(tiles, title, xlabel=xlabel, row_labels=list(stacks) * (rows // height))
    axes.xaxis.labelpad = 6 + room * 72 / DPI
    for k, cell in enumerate(top):
        text = captions[k] + (f"\n{_shortened(names[k], tiles.tile[1])}" if names else "")
        x, y = tiles.column_centres[cell % columns], tiles.rows[cell // columns + height - 1] + tiles.tile[0] + 4
        axes.text(x, y, text, ha="center", va="top", fontsize=7.5)
    return axes


def _shortened(name: str, pixels: int) -> str:
    """The name, truncated to a width in pixels."""
    most = max(2, pixels // LETTER)
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


@styled
def samples(
    images: Tensor,
    *,
    title: str = "Samples from the prior",
    columns: int | None = None,
    numbered: bool = False,
) -> Figure:
    """(N, C, H, W) in a grid as square as N allows; `numbered` writes indices along the edges."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    tiles = arrange(images, columns)
    firsts = range(0, len(images), columns)
    if not numbered:
        return fit_axes(draw(tiles, title, xlabel=f"{len(images)} images"))
    xlabel = "sample index = row + column"
    across, down = _numbers(range(columns)), _numbers(firsts)
    return fit_axes(draw(tiles, title, xlabel=xlabel, column_labels=across, row_labels=down))


@styled
def sample_rows(
    images: Tensor,
    rows: Sequence[str],
    *,
    ylabel: str,
    title: str = "Samples from the prior, same random numbers in each column",
) -> Figure:
    """(R, n, C, H, W): rows of samples named in `rows`, all made from the same n random numbers."""
    tiles = arrange(images.flatten(0, 1), images.shape[1])
    labels = {"column_labels": _numbers(range(images.shape[1])), "row_labels": rows}
    return fit_axes(draw(tiles, title, xlabel="sample index", ylabel=ylabel, **labels))


@styled
def latent_grid(
    images: Tensor,
    values: Tensor,
    dims: Sequence[int] = (0, 1),
    *,
    quantiles: Tensor | None = None,
    of: str = "N(0, 1)",
    title: str = "Latent space, decoded",
) -> Figure:
    """(n, n, C, H, W): row j from the bottom decodes z_dims[1] = values[j], column i z_dims[0] = values[i].

    With one dimension, (1, n, C, H, W). Both axes show `values`, (n,) or, if the axes differ, (2, n). `quantiles` (n,):
    share of the distribution `of` below each value, shown if given.
    """
    rows, columns = images.shape[:2]
    tiles = arrange(images.flip(0).flatten(0, 1), columns)
    across, up = ([_number(value, 2) for value in axis.tolist()] for axis in values.expand(2, -1))
    xlabel, below = _latent(dims[0]), across
    if quantiles is not None:
        xlabel += f", and the share of {of} below it"
        below = [f"{text}\n{q:.0%}" for text, q in zip(across, quantiles.tolist(), strict=True)]
    if rows == 1:
        return fit_axes(draw(tiles, title, xlabel=xlabel, column_labels=below))
    ylabel = _latent(dims[1])
    return fit_axes(draw(tiles, title, xlabel=xlabel, ylabel=ylabel, column_labels=below, row_labels=up[::-1]))


@styled
def traversals(
    images: Tensor,
    values: Tensor,
    dims: Sequence[int],
    kl: Tensor | None = None,
    *,
    xlabel: str = "value of the dimension",
    ylabel: str = "dimension",
    title: str = "Traversals: one latent dimension varied at a time",
) -> Figure:
    """(D, n, C, H, W): row d decodes z_dims[d] = values (n,), the other dimensions fixed; kl (D,) in nats."""
    tiles = arrange(images.flatten(0, 1), images.shape[1])
    rows = [_latent(dim) for dim in dims]
    if kl is not None:
        rows = [f"{row}   KL {value:.1f}" for row, value in zip(rows, kl.tolist(), strict=True)]
    columns = [_number(value, 1) for value in values.tolist()]
    ylabel = ylabel if kl is None else "dimension, and its KL in nats"
    return fit_axes(draw(tiles, title, xlabel=xlabel, ylabel=ylabel, column_labels=columns, row_labels=rows))


@styled
def interpolations(
    images: Tensor,
    originals: Tensor | None = None,
    *,
    centre: str = "posterior mean",
    title: str = "Interpolations between images",
) -> Figure:
    """(P, n, C, H, W): each row decodes a path between two latents, between its originals (P, 2, C, H, W).

    centre: name of the point estimate that gives the latent of an image.
    """
    pairs, steps = images.shape[:2]
    columns = [_number(step / max(steps - 1, 1), 1) for step in range(steps)]
    gaps: tuple[int, ...] = ()
    if originals is not None:
        images = torch.cat([originals[:, :1], images, originals[:, 1:]], dim=1)
        columns = ["original", *columns, "original"]
        gaps = (0, steps)
    tiles = arrange(images.flatten(0, 1), len(columns), gaps_right=gaps)
    xlabel = f"fraction of the path from the left image's {centre} to the right image's"
    ylabel, rows = "pair index", _numbers(range(pairs))
    return fit_axes(draw(tiles, title, xlabel=xlabel, ylabel=ylabel, column_labels=columns, row_labels=rows))


def _latent(dim: int) -> str:
    return f"$z_{{{dim}}}$"


def _numbers(values: Sequence[int]) -> list[str]:
    return [str(value) for value in values]


def _number(value: float, digits: int) -> str:
    """Format with a typographic minus sign, and without "-0"."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")
