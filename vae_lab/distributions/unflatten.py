"""Separate the samples and images of a flattened batch: (S B,) to (S, B)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence
from torch.distributions.kl import register_kl

from vae_lab.core import EMPTY_SHAPE, SampleShape
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


class UnflattenedBatch(Distribution):
    """A distribution of batch (S B,) whose parameters cannot be reshaped, with batch (S, B)."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, flat: Distribution, num_samples: int) -> None:
        self.flat, self.has_rsample = flat, flat.has_rsample
        self._last_sample: tuple[Tensor, Tensor] | None = None
        batch = torch.Size((num_samples, flat.batch_shape[0] // num_samples))
        super().__init__(batch, flat.event_shape, validate_args=False)

    def rsample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        flat = self.flat.rsample(torch.Size(sample_shape))
        z: Tensor = flat.unflatten(len(sample_shape), self.batch_shape)
        self._last_sample = (z, flat)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, (*, S, B)."""
        # A flow caches the density of the tensor that it sampled; inverting it for another can be slow.
        if self._last_sample is not None and value is self._last_sample[0]:
            flat = self._last_sample[1]
        else:
            flat = value.flatten(first := value.dim() - len(self.event_shape) - 2, first + 1)
        log_prob: Tensor = self.flat.log_prob(flat).unflatten(-1, self.batch_shape)
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
