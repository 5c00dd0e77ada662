"""Priors without parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from vae_lab.core import NO_INPUTS, LatentKind, LatentSpec, Prior, PriorInputs
from vae_lab.distributions.degenerate import Improper
from vae_lab.distributions.spatial import SpatialDistribution
from vae_lab.distributions.sphere import SphericalUniform


class StandardNormal(Prior):
    """N(0, I) over a latent of any shape."""

    mean: Tensor
    scale: Tensor

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        # Constants, so not in the checkpoint; buffers because they move with the model to its device.
        self.register_buffer("mean", torch.zeros(latent.shape), persistent=False)
        self.register_buffer("scale", torch.ones(latent.shape), persistent=False)

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """p(z), batch ()."""
        return Independent(Normal(self.mean, self.scale, validate_args=False), self.mean.dim(), validate_args=False)


class UniformSphere(Prior):
    """The uniform density on the unit sphere; on a feature map, at each position."""

    kinds: tuple[LatentKind, ...] = ("sphere",)
    like: Tensor

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.shape = latent.shape
        self.register_buffer("like", torch.zeros(()), persistent=False)  # carries the model's device and dtype

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """p(z), batch ()."""
        dim, *spatial_shape = self.shape
        vectors = SphericalUniform(dim, tuple(spatial_shape), self.like)
        return SpatialDistribution(vectors) if spatial_shape else vectors


class Flat(Prior):
    """log p(z) = 0 everywhere, which is not a density: the prior of an autoencoder (model/posterior=delta)."""

    kinds: tuple[LatentKind, ...] = ("vector", "sphere", "codes")
    is_density = False

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.shape = latent.shape

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """p(z), batch ()."""
        return Improper(self.shape)
