"""Paths and planes of latents to decode, and their principal components. Pure functions, z is (..., D)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vae_lab.core import LatentSpec

Interpolation = Literal["spherical", "linear"]
PARALLEL = 1e-3  # sine of the angle below which the direction of an arc is undefined


def plane(values: Tensor, dims: Sequence[int], latent_dim: int) -> Tensor:
    """(n, n, D): row j, column i has z_dims[0] = values[i], z_dims[1] = values[j]; (1, n, D) for one dim."""
    z = values.new_zeros(len(values) if len(dims) > 1 else 1, len(values), latent_dim)
    z[..., dims[0]] = values
    if len(dims) > 1:
        z[..., dims[1]] = values[:, None]
    return z


def axes_through(centre: Tensor, values: Tensor, dims: Sequence[int]) -> Tensor:
    """(K, n, D): row k is `centre` (D,) with z_dims[k] set to values[k] of (K, n)."""
    z = centre.repeat(len(dims), values.shape[-1], 1)
    for row, (dim, along) in enumerate(zip(dims, values, strict=True)):
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


def path_between(start: Tensor, end: Tensor, steps: int, kind: Interpolation, latent: LatentSpec) -> Tensor:
    """(P, steps, D) between flat latents, (P, D) each; on a sphere always along great circles."""
    if latent.kind == "sphere":
        return arc_on_sphere(start, end, steps, latent.shape)
    return arc(start, end, steps) if kind == "spherical" else straight_line(start, end, steps)


def principal_directions(points: Tensor, count: int = 2) -> Tensor:
    """Orthonormal directions of the largest variance of points (N, D), float64 (at most count, D).

    The largest loading of each is positive.
    """
    _, _, directions = torch.linalg.svd((points - points.mean(0)).double(), full_matrices=False)
    directions = directions[:count]
    # the sign of a component is arbitrary: fix it, so that the scatter does not flip between epochs
    signed: Tensor = directions * directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    return signed


def principal_components(points: Tensor, count: int = 2) -> tuple[Tensor, list[float]]:
    """Projections (N, count) on the principal directions, and the share of variance explained by each."""
    directions, centred = principal_directions(points, count), (points - points.mean(0)).double()
    projected = centred @ directions.T
    projected = torch.nn.functional.pad(projected, (0, count - len(directions)))  # fewer points than components
    total = centred.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    return projected.float(), (projected.square().sum(0) / total).tolist()
