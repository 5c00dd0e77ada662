"""Sampling temperature of priors: multiplies their scale, divides the logits of codes."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from vae_lab.distributions.codes import CodeDistribution
from vae_lab.distributions.flows import FlowDistribution
from vae_lab.distributions.gaussians import FullNormal, mixture
from vae_lab.distributions.reshaped import SpatialDistribution
from vae_lab.priors.codes import AutoregressiveIndices

MIN_TEMPERATURE = 1e-6  # of codes: low enough for sampling to be an argmax


def with_temperature(prior: Distribution, temperature: float) -> Distribution:
    """The prior with its scale multiplied by `temperature`: each component of a mixture, the base of a flow.

    The probability of a code, given those before it, is raised to 1 / temperature and renormalised.
    ValueError: a family without a scale.
    """
    if temperature == 1.0:
        return prior
    scaled: Distribution
    if isinstance(prior, Normal):
        scaled = Normal(prior.loc, temperature * prior.scale, validate_args=False)
    elif isinstance(prior, MultivariateNormal):
        scaled = FullNormal(prior.loc, scale_tril=temperature * prior._unbroadcasted_scale_tril, validate_args=False)
    elif isinstance(prior, Independent):
        base = with_temperature(prior.base_dist, temperature)
        scaled = Independent(base, prior.reinterpreted_batch_ndims, validate_args=False)
    elif isinstance(prior, SpatialDistribution):
        scaled = SpatialDistribution(with_temperature(prior.base_dist, temperature))
    elif isinstance(prior, MixtureSameFamily):
        scaled = mixture(prior.mixture_distribution.logits, with_temperature(prior.component_distribution, temperature))
    elif isinstance(prior, TransformedDistribution):
        base = with_temperature(prior.base_dist, temperature)
        scaled = TransformedDistribution(base, prior.transforms, validate_args=False)
    elif isinstance(prior, FlowDistribution):
        scaled = FlowDistribution(with_temperature(prior.base, temperature), prior.flows)
    elif isinstance(prior, CodeDistribution):
        indices = with_temperature(prior.index_distribution, temperature)
        scaled = CodeDistribution(indices, prior.codes, prior.event_shape)
    elif isinstance(prior, Categorical):
        scaled = Categorical(logits=tempered_logits(prior.logits, temperature), validate_args=False)
    elif isinstance(prior, AutoregressiveIndices):
        network = prior.network
        scaled = AutoregressiveIndices(lambda given: tempered_logits(network(given), temperature), prior.event_shape)
    else:
        raise ValueError(f"temperature={temperature}: {type(prior).__name__} has no scale to multiply; use 1")
    return scaled


def tempered_logits(logits: Tensor, temperature: float) -> Tensor:
    """At temperature 0, only the most probable code remains."""
    return logits / max(temperature, MIN_TEMPERATURE)
