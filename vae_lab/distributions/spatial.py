"""Latent maps: independent distributions of vectors at each position."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence
from torch.distributions.kl import register_kl

from vae_lab.core import EMPTY_SHAPE, SampleShape
from vae_lab.distributions.flows import SampledWithDensity, rsample_and_log_prob
from vae_lab.distributions.gaussians import as_diagonal_normal


class SpatialDistribution(SampledWithDensity):
    """Independent vectors at the positions of a map: batch (*batch), event (F, h, w).

    base: batch (*batch, h, w), event (F,).
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base: Distribution) -> None:
        self.base_dist = base
        self.has_rsample = base.has_rsample
        event = torch.Size((*base.event_shape, *base.batch_shape[-2:]))
        super().__init__(base.batch_shape[:-2], event, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, the batch shape."""
        return self.base_dist.log_prob(features_last(value)).sum((-2, -1))

    def rsample_and_log_prob(self, sample_shape: SampleShape = EMPTY_SHAPE) -> tuple[Tensor, Tensor | None]:
        z, log_prob = rsample_and_log_prob(self.base_dist, sample_shape)
        return features_first(z), None if log_prob is None else log_prob.sum((-2, -1))

    def rsample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        return features_first(self.base_dist.rsample(torch.Size(sample_shape)))

    def sample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        return features_first(self.base_dist.sample(torch.Size(sample_shape)))

    @property
    def mean(self) -> Tensor:
        return features_first(self.base_dist.mean)

    @property
    def mode(self) -> Tensor:
        return features_first(self.base_dist.mode)

    @property
    def variance(self) -> Tensor:
        return features_first(self.base_dist.variance)

    def entropy(self) -> Tensor:
        """In nats, the batch shape."""
        return self.base_dist.entropy().sum((-2, -1))


def features_last(value: Tensor) -> Tensor:
    """(*, F, h, w) to (*, h, w, F)."""
    return value.movedim(-3, -1)


def features_first(value: Tensor) -> Tensor:
    """(*, h, w, F) to (*, F, h, w)."""
    return value.movedim(-1, -3)


@register_kl(SpatialDistribution, SpatialDistribution)  # type: ignore[untyped-decorator]
def _kl_spatial(q: SpatialDistribution, p: SpatialDistribution) -> Tensor:
    """KL(q || p), the batch shape."""
    return kl_divergence(q.base_dist, p.base_dist).sum((-2, -1))


@register_kl(SpatialDistribution, Independent)  # type: ignore[untyped-decorator]
def _kl_to_diagonal(q: SpatialDistribution, p: Independent[Distribution]) -> Tensor:
    """KL(q || p), the batch shape. NotImplementedError: p is not a diagonal Gaussian over maps."""
    base = as_diagonal_normal(p)
    if base is None or len(p.event_shape) != len(q.event_shape):
        raise NotImplementedError
    mean, scale = features_last(base.loc), features_last(base.scale)
    vectors = Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)
    return kl_divergence(q.base_dist, vectors).sum((-2, -1))


def to_spatial(vectors: Distribution) -> Distribution:
    """Distribution of batch (B, h, w) as one of latent maps, batch (B,); batch (B,) unchanged."""
    return SpatialDistribution(vectors) if len(vectors.batch_shape) == 3 else vectors
