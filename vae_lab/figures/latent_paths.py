"""Paths and planes of latents to decode, and projections to two dimensions. Pure functions, z is (..., D)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PARALLEL = 1e-3  # sine of the angle below which the direction of an arc is undefined


def plane(values: Tensor, dims: Sequence[int], latent_dim: int) -> Tensor:
    """(n, n, D): row j, column i has z_dims[0] = values[i], z_dims[1] = values[j]; (1, n, D) for one dim."""
    z = values.new_zeros(len(values) if len(dims) > 1 else 1, len(values), latent_dim)
    z[..., dims[0]] = values
    if len(dims) > 1:
        z[..., dims[1]] = values[:, None]
    return z


def axes_through(centre: Tensor, values: Tensor, dims: Sequence[int]) -> Tensor:
    """(K, n, D): row k is `centre` (D,) with z_dims[k] set to `values` (n,), or to values[k] of (K, n)."""
    z = centre.repeat(len(dims), values.shape[-1], 1)
    for row, (dim, along) in enumerate(zip(dims, values.expand(len(dims), -1), strict=True)):
        z[row, :, dim] = along
    return z


def straight_line(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """(P, steps, D) evenly spaced between start and end, (P, D) each."""
    share = torch.linspace(0, 1, steps)[:, None]
    return torch.lerp(start[:, None], end[:, None], share)


def arc(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """(P, steps, D) along great circles; straight lines where these are undefined. White, arXiv:1609.04468."""
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=-1).clamp(-1, 1)
    angle = cosine.acos()[:, None, None]
    share = torch.linspace(0, 1, steps)[:, None]
    curved = ((1 - share) * angle).sin() * start[:, None] + (share * angle).sin() * end[:, None]
    bent = angle.sin() > PARALLEL
    return torch.where(bent, curved / angle.sin().clamp(min=PARALLEL), straight_line(start, end, steps))


def arc_on_sphere(start: Tensor, end: Tensor, steps: int, shape: tuple[int, ...]) -> Tensor:
    """(P, steps, D) between (P, D): flat latents of shape (F, *map) with unit length at each position."""
    positions = math.prod(shape[1:])
    starts, ends = (z.reshape(-1, shape[0], positions).mT.reshape(-1, shape[0]) for z in (start, end))
    way = torch.nn.functional.normalize(arc(starts, ends, steps), dim=-1)
    return way.reshape(len(start), positions, steps, shape[0]).permute(0, 2, 3, 1).flatten(2)


class Projection(NamedTuple):
    """Points in two dimensions and the labels of both axes."""

    points: Tensor  # (N, 2)
    xlabel: str
    ylabel: str


def project_to_plane(means: Tensor, scale: Tensor | None = None) -> Projection:
    """Posterior means (N, D): unchanged if D = 2, against their scale (N, 1) if D = 1, else by principal components."""
    if scale is not None:
        return Projection(torch.cat([means, scale], 1), "$z_{0}$", "standard deviation of $z_{0}$")
    if means.shape[1] == 2:
        return Projection(means, "$z_{0}$", "$z_{1}$")
    points, explained = principal_components(means)
    names = [f"principal component {k + 1} ({share:.0%} of the variance)" for k, share in enumerate(explained)]
    return Projection(points, *names)


def principal_components(points: Tensor, count: int = 2) -> tuple[Tensor, list[float]]:
    """Projections (N, count) and the share of variance explained by each component; its largest loading is positive."""
    centred = points - points.mean(0)
    _, _, directions = torch.linalg.svd(centred.double(), full_matrices=False)
    directions = directions[:count]
    # the sign of a component is arbitrary: fix it, so that the scatter does not flip between epochs
    largest = directions.abs().argmax(1, keepdim=True)
    projected = centred.double() @ (directions * directions.gather(1, largest).sign()).T
    if len(directions) < count:  # fewer points than components
        projected = torch.nn.functional.pad(projected, (0, count - len(directions)))
    total = centred.double().square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    return projected.float(), (projected.square().sum(0) / total).tolist()
