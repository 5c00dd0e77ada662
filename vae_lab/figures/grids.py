"""Bare grids of images without titles or axes: cheap enough to draw while training waits.

The images of a grid are those of the titled figure of the same name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vae_lab.figures import latent_paths as latents
from vae_lab.figures.canvas import Pixels
from vae_lab.figures.context import FigureContext
from vae_lab.figures.mosaic import arrange

GRID_PIXELS = 1400  # longest side of the latent grid: large images reduce the number of its cells
QUANTILES = 0.05, 0.95
PAIRS_PER_ROW = 8


class LatentPlane(NamedTuple):
    """The plane of the two most active dimensions at normal quantiles, the others at their means."""

    images: Tensor  # (n, n, C, H, W), or (1, n, C, H, W) with a single dimension; rows from the bottom
    dims: list[int]
    quantiles: Tensor  # (n,)
    along: Tensor  # (dims, n), coordinates


def latent_plane(context: FigureContext) -> LatentPlane:
    space = context.space
    dims = list(range(space.size)) if space.size <= 2 else space.dims_by_activity[:2]
    size = min(context.sizes.grid_size, max(8, GRID_PIXELS // max(context.model.image.shape[1:])))
    quantiles = torch.linspace(*QUANTILES, size)
    values = torch.special.ndtri(quantiles)
    z = space.location.mean + space.location.scale * latents.plane(values, dims, space.size)
    along = space.location.mean[dims, None] + space.location.scale[dims, None] * values
    return LatentPlane(space.decode(z, context.first_label), dims, quantiles, along)


def sample_images(context: FigureContext) -> Tensor:
    """Samples from the prior, (N, C, H, W), cycling through the classes of a conditional model."""
    count = context.sizes.num_samples
    y = torch.arange(count) % context.model.image.num_classes if context.model.conditional else None
    return context.sample(count, y)


def reconstructions(context: FigureContext) -> Pixels:
    """Images, each above its reconstruction."""
    x = context.examples.x[: context.sizes.num_images]
    count, columns = len(x), min(PAIRS_PER_ROW, len(x))
    top = [2 * columns * (k // columns) + k % columns for k in range(count)]
    cells = [*top, *(cell + columns for cell in top)]
    images = torch.cat([x, context.reconstructed(count).mean.float().cpu()])
    return arrange(images, columns, cells, gaps_below=range(1, 2 * math.ceil(count / columns) - 1, 2)).pixels


def samples(context: FigureContext) -> Pixels:
    images = sample_images(context)
    return arrange(images, math.ceil(math.sqrt(len(images)))).pixels


def latent_grid(context: FigureContext) -> Pixels:
    images = latent_plane(context).images
    return arrange(images.flip(0).flatten(0, 1), images.shape[1]).pixels


GRIDS: Mapping[str, Callable[[FigureContext], Pixels]] = {
    "reconstructions": reconstructions,
    "samples": samples,
    "latent_grid": latent_grid,
}
