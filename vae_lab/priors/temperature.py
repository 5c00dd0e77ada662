"""Sampling temperature of priors: multiplies their scale."""

from __future__ import annotations

import functools

from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from vae_lab.distributions.flows import FlowDistribution
from vae_lab.distributions.gaussians import FullNormal, mixture
from vae_lab.distributions.reshaped import SpatialDistribution


def with_temperature(prior: Distribution, temperature: float) -> Distribution:
    """The prior with its scale multiplied by `temperature`: each component of a mixture, the base of a flow.

    Priors over codes rescale their logits instead. ValueError: a family without a scale.
    """
    return prior if temperature == 1.0 else scale_prior(prior, temperature)


@functools.singledispatch
def scale_prior(prior: Distribution, temperature: float) -> Distribution:
    """`with_temperature` for one family; other modules register theirs. ValueError: a family without a scale."""
    raise ValueError(f"temperature={temperature}: {type(prior).__name__} has no scale to multiply; use 1")


@scale_prior.register
def _(prior: Normal, temperature: float) -> Distribution:
    return Normal(prior.loc, temperature * prior.scale, validate_args=False)


@scale_prior.register
def _(prior: MultivariateNormal, temperature: float) -> Distribution:
    factor = temperature * prior._unbroadcasted_scale_tril
    return FullNormal(prior.loc, scale_tril=factor, validate_args=False)


@scale_prior.register(Independent)  # singledispatch does not accept a generic class as an annotation
def _(prior: Independent[Distribution], temperature: float) -> Distribution:
    base = scale_prior(prior.base_dist, temperature)
    return Independent(base, prior.reinterpreted_batch_ndims, validate_args=False)


@scale_prior.register
def _(prior: SpatialDistribution, temperature: float) -> Distribution:
    return SpatialDistribution(scale_prior(prior.base_dist, temperature))


@scale_prior.register
def _(prior: MixtureSameFamily, temperature: float) -> Distribution:
    components = scale_prior(prior.component_distribution, temperature)
    return mixture(prior.mixture_distribution.logits, components)


@scale_prior.register
def _(prior: TransformedDistribution, temperature: float) -> Distribution:
    base = scale_prior(prior.base_dist, temperature)
    return TransformedDistribution(base, prior.transforms, validate_args=False)


@scale_prior.register
def _(prior: FlowDistribution, temperature: float) -> Distribution:
    return FlowDistribution(scale_prior(prior.base, temperature), prior.flows)
