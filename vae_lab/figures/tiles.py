"""Figures made of images: reconstructions, samples, the latent grid, traversals, interpolations, denoising.

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

CAPTION = 24  # pixels for a line of text below an image
NEXT_LINE = 15  # for another
LETTER = 8  # pixels that a letter of it takes, at most


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
    """Two tensors (N, C, H, W) as pairs, each with its number and, where given, its log_px (N,) in nats and a name."""
    captions = _numbers(range(len(originals)))
    xlabel = "number of the image"
    if log_px is not None:
        captions = [
            f"{caption}:  {_number(value, 1)}" for caption, value in zip(captions, log_px.tolist(), strict=True)
        ]
        xlabel += ", and its log p(x|z) in nats"
    if names:
        xlabel += "; below, the class that is told"
    stacks = {"original": originals, "reconstruction": reconstructed}
    return fit_axes(_stacked(stacks, captions, names, title=title, xlabel=xlabel, columns=columns))


@styled
def denoising(
    clean: Tensor, corrupted: Tensor, restored: Tensor, *, title: str = "Corrupted images restored", columns: int = 8
) -> Figure:
    """Three tensors (N, C, H, W): images, what the encoder sees in their place, and what is decoded of that."""
    stacks = {"clean": clean, "corrupted": corrupted, "restored": restored}
    captions = _numbers(range(len(clean)))
    return fit_axes(_stacked(stacks, captions, title=title, xlabel="number of the image", columns=columns))


def _stacked(
    stacks: Mapping[str, Tensor],
    captions: Sequence[str],
    names: Sequence[str] = (),
    *,
    title: str,
    xlabel: str,
    columns: int,
) -> Axes:
    """Several (N, C, H, W): the k-th image of each below the one before it, a caption and perhaps a name below all."""
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
    """A name no wider than so many pixels."""
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
def sample_rows(
    images: Tensor,
    rows: Sequence[str],
    *,
    ylabel: str,
    title: str = "Samples from the prior, of the same random numbers",
) -> Figure:
    """(R, n, C, H, W): each row, named in `rows`, shows what the same n draws become."""
    tiles = arrange(images.flatten(0, 1), images.shape[1])
    labels = {"column_labels": _numbers(range(images.shape[1])), "row_labels": rows}
    return fit_axes(draw(tiles, title, xlabel="number of the draw", ylabel=ylabel, **labels))


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

    With one dimension, (1, n, C, H, W). `values` (n,), or (2, n) where the axes differ, are named on both axes, with
    the share of a distribution `of` that lies below each of them where `quantiles` (n,) gives it.
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
    title: str = "Traversals: one latent dimension moved at a time",
) -> Figure:
    """(D, n, C, H, W): row d decodes z_dims[d] = values (n,), the rest held; kl (D,) in nats, as sorted."""
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
    title: str = "From one image to another",
) -> Figure:
    """(P, n, C, H, W): each row decodes the way between two latents; originals (P, 2, C, H, W) flank it.

    `point_estimate`: what the latents are of their images.
    """
    pairs, steps = images.shape[:2]
    columns = [_number(step / max(steps - 1, 1), 1) for step in range(steps)]
    gaps: tuple[int, ...] = ()
    if originals is not None:
        images = torch.cat([originals[:, :1], images, originals[:, 1:]], dim=1)
        columns = ["original", *columns, "original"]
        gaps = (0, steps)
    tiles = arrange(images.flatten(0, 1), len(columns), gaps_right=gaps)
    xlabel = f"share of the way from the left image's {centre} to the right one's"
    ylabel, rows = "number of the pair", _numbers(range(pairs))
    return fit_axes(draw(tiles, title, xlabel=xlabel, ylabel=ylabel, column_labels=columns, row_labels=rows))


def _latent(dim: int) -> str:
    return f"$z_{{{dim}}}$"


def _numbers(values: Sequence[int]) -> list[str]:
    return [str(value) for value in values]


def _number(value: float, digits: int) -> str:
    """With a true minus sign, and no "-0"."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")
