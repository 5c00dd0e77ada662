"""Separate the samples and images of a flattened batch: (S B,) to (S, B)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence
from torch.distributions.kl import register_kl

from vae_lab.core import EMPTY_SHAPE, SampleShape
from vae_lab.distributions.flows import SampledWithDensity, rsample_and_log_prob
from vae_lab.distributions.gaussians import as_diagonal_normal


def unflatten_batch(distribution: Distribution, num_samples: int) -> Distribution:
    """Distribution of batch (S B,) with batch (S, B), for S > 1; batch () unchanged."""
    if num_samples == 1 or not distribution.batch_shape:
        return distribution
    base = as_diagonal_normal(distribution)
    if base is None:
        return UnflattenedBatch(distribution, num_samples)
    mean, scale = (values.unflatten(0, (num_samples, -1)) for values in (base.loc, base.scale))
    normal = Normal(mean, scale, validate_args=False)
    return Independent(normal, len(distribution.event_shape), validate_args=False)


class UnflattenedBatch(SampledWithDensity):
    """A distribution of batch (S B,) whose parameters cannot be reshaped, with batch (S, B)."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, flat: Distribution, num_samples: int) -> None:
        self.flat, self.has_rsample = flat, flat.has_rsample
        batch = torch.Size((num_samples, flat.batch_shape[0] // num_samples))
        super().__init__(batch, flat.event_shape, validate_args=False)

    def rsample_and_log_prob(self, sample_shape: SampleShape = EMPTY_SHAPE) -> tuple[Tensor, Tensor | None]:
        z, log_prob = rsample_and_log_prob(self.flat, sample_shape)
        z = z.unflatten(len(sample_shape), self.batch_shape)
        return z, None if log_prob is None else log_prob.unflatten(-1, self.batch_shape)

    def rsample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        z: Tensor = self.flat.rsample(torch.Size(sample_shape)).unflatten(len(sample_shape), self.batch_shape)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, (*, S, B)."""
        first = value.dim() - len(self.event_shape) - 2
        log_prob: Tensor = self.flat.log_prob(value.flatten(first, first + 1)).unflatten(-1, self.batch_shape)
        return log_prob

    @property
    def mean(self) -> Tensor:
        mean: Tensor = self.flat.mean.unflatten(0, self.batch_shape)
        return mean

    @property
    def mode(self) -> Tensor:
        mode: Tensor = self.flat.mode.unflatten(0, self.batch_shape)
        return mode


@register_kl(UnflattenedBatch, UnflattenedBatch)  # type: ignore[untyped-decorator]
def _kl_both(q: UnflattenedBatch, p: UnflattenedBatch) -> Tensor:
    """KL(q || p), (S, B)."""
    kl: Tensor = kl_divergence(q.flat, p.flat).unflatten(0, q.batch_shape)
    return kl


@register_kl(UnflattenedBatch, Distribution)  # type: ignore[untyped-decorator]
def _kl_from_unflattened(q: UnflattenedBatch, p: Distribution) -> Tensor:
    """KL(q || p), (S, B), for p without a batch. NotImplementedError: p has one."""
    if p.batch_shape:
        raise NotImplementedError
    kl: Tensor = kl_divergence(q.flat, p).unflatten(0, q.batch_shape)
    return kl
