"""Priors without parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.core import NO_INPUTS, LatentKind, LatentSpec, Prior, PriorInputs
from vae_lab.distributions.base import Improper
from vae_lab.distributions.gaussians import diagonal_normal
from vae_lab.distributions.reshaped import SpatialDistribution
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
        return diagonal_normal(self.mean, self.scale, self.mean.dim())


class UniformSphere(Prior):
    """The uniform density on the unit sphere; on a feature map, at each position."""

    kinds: tuple[LatentKind, ...] = ("sphere",)
    like: Tensor

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.shape = latent.shape
        self.register_buffer("like", torch.zeros(()), persistent=False)  # carries the model's device and dtype

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        dim, *spatial_shape = self.shape
        vectors = SphericalUniform(dim, spatial_shape, self.like)
        return SpatialDistribution(vectors) if spatial_shape else vectors


class Flat(Prior):
    """log p(z) = 0 everywhere, which is not a density: the prior of an autoencoder (model/posterior=delta)."""

    kinds: tuple[LatentKind, ...] = ("vector", "sphere", "codes")
    is_density = False

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.shape = latent.shape

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        return Improper((), self.shape)
