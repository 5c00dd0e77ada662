"""Priors p(z): modules whose call gives a torch Distribution over one latent.

A prior says on which kinds of latents it lives (`kinds`), and gets what it may depend on as `Given`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vae_lab.latents import NOTHING, Given, Kind, LatentSpec


class Prior(Protocol):
    """p(z), or p(z|y)."""

    kinds: tuple[Kind, ...]

    def __call__(self, given: Given = NOTHING) -> Distribution:
        """Event the latent's shape; batch (), or (B,) where the prior depends on the labels."""
        ...


class StandardNormal(nn.Module):
    """N(0, I) over a latent of any shape."""

    kinds: tuple[Kind, ...] = ("vector",)
    mean: Tensor
    scale: Tensor

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        # Not in a checkpoint: they are constants, and buffers only to follow the model to its device.
        self.register_buffer("mean", torch.zeros(latent.shape), persistent=False)
        self.register_buffer("scale", torch.ones(latent.shape), persistent=False)

    def forward(self, given: Given = NOTHING) -> Distribution:
        """p(z), batch ()."""
        return Independent(Normal(self.mean, self.scale, validate_args=False), self.mean.dim(), validate_args=False)


def tempered(prior: Distribution, temperature: float) -> Distribution:
    """The prior with its scale multiplied by `temperature`. ValueError: a family that has no scale."""
    if temperature == 1.0:
        return prior
    if isinstance(prior, Independent) and isinstance(prior.base_dist, Normal):
        base = Normal(prior.base_dist.loc, temperature * prior.base_dist.scale, validate_args=False)
        return Independent(base, prior.reinterpreted_batch_ndims, validate_args=False)
    raise ValueError(f"temperature={temperature}: {type(prior).__name__} has no scale that it could multiply; use 1")
