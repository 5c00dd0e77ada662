"""Priors p(z): modules whose call gives a torch Distribution over one latent.

A prior says on which kinds of latents it lives (`kinds`), and gets what it may depend on as `Given`. Here are those
without parameters, and how any of them is tempered.
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from vae_lab.densities import NO_SHAPE, Shape
from vae_lab.gaussians import FullNormal
from vae_lab.latents import NOTHING, Given, Kind, LatentSpec
from vae_lab.mixtures import mixture
from vae_lab.places import Placewise
from vae_lab.sphere import SphericalUniform


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

    def sample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """NotImplementedError."""
        raise NotImplementedError(
            "model/prior=flat has no samples. Fit a prior to the latents of the trained model:\n"
            "python -m vae_lab.fit_prior run=..."
        )


def tempered(prior: Distribution, temperature: float) -> Distribution:
    """The prior with its scale multiplied by `temperature`: of a mixture each component's, of a flow its base's.

    ValueError: a family that has no scale.
    """
    return prior if temperature == 1.0 else _tempered(prior, temperature)


@functools.singledispatch
def _tempered(prior: Distribution, temperature: float) -> Distribution:
    raise ValueError(f"temperature={temperature}: {type(prior).__name__} has no scale that it could multiply; use 1")


@_tempered.register
def _(prior: Normal, temperature: float) -> Distribution:
    return Normal(prior.loc, temperature * prior.scale, validate_args=False)


@_tempered.register
def _(prior: MultivariateNormal, temperature: float) -> Distribution:
    factor = temperature * prior._unbroadcasted_scale_tril
    return FullNormal(prior.loc, scale_tril=factor, validate_args=False)


@_tempered.register(Independent)  # a generic class, which singledispatch does not take from an annotation
def _(prior: Independent[Distribution], temperature: float) -> Distribution:
    base = _tempered(prior.base_dist, temperature)
    return Independent(base, prior.reinterpreted_batch_ndims, validate_args=False)


@_tempered.register
def _(prior: Placewise, temperature: float) -> Distribution:
    return Placewise(_tempered(prior.base_dist, temperature))


@_tempered.register
def _(prior: MixtureSameFamily, temperature: float) -> Distribution:
    components = _tempered(prior.component_distribution, temperature)
    return mixture(prior.mixture_distribution.logits, components)


@_tempered.register
def _(prior: TransformedDistribution, temperature: float) -> Distribution:
    base = _tempered(prior.base_dist, temperature)
    return TransformedDistribution(base, prior.transforms, validate_args=False)
