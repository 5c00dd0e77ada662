"""Priors without parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vae_lab.densities.pixels import NO_SHAPE, SampleShape
from vae_lab.densities.places import Placewise
from vae_lab.densities.sphere import SphericalUniform
from vae_lab.latents import NOTHING, Given, Kind, LatentSpec


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


class UniformSphere(nn.Module):
    """The uniform density on the unit sphere; over a map, of each place."""

    kinds: tuple[Kind, ...] = ("sphere",)
    like: Tensor

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.shape = latent.shape
        self.register_buffer("like", torch.zeros(()), persistent=False)  # follows the model to its device

    def forward(self, given: Given = NOTHING) -> Distribution:
        """p(z), batch ()."""
        dim, *places = self.shape
        vectors = SphericalUniform(dim, tuple(places), self.like)
        return Placewise(vectors) if places else vectors


class Flat(nn.Module):
    """No prior: log p(z) = 0 everywhere, which is no density. The prior of an autoencoder (posterior `delta`)."""

    kinds: tuple[Kind, ...] = ("vector", "sphere", "codes")
    is_density = False

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.shape = latent.shape

    def forward(self, given: Given = NOTHING) -> Distribution:
        """p(z), batch ()."""
        return Improper(self.shape)


class Improper(Distribution):
    """Weight 1 everywhere: `log_prob` is 0, `is_density` False, and there are no samples."""

    arg_constraints = {}  # noqa: RUF012
    is_density = False

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(torch.Size(), torch.Size(event_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zeros, (*batch) of value (*batch, *event)."""
        return value.new_zeros(value.shape[: value.dim() - len(self.event_shape)])

    def sample(self, sample_shape: SampleShape = NO_SHAPE) -> Tensor:
        """NotImplementedError."""
        raise NotImplementedError(
            "model/prior=flat has no samples. Fit a prior to the latents of the trained model:\n"
            "python -m vae_lab.fit_prior run=..."
        )
