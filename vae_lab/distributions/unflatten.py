"""Samples of images told apart again: a batch (S B,) as (S, B)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence
from torch.distributions.kl import register_kl

from vae_lab.core import NO_SHAPE, SampleShape
from vae_lab.distributions.gaussians import as_diagonal_normal


def unflatten_batch(distribution: Distribution, num_samples: int) -> Distribution:
    """Batch (S B,) as (S, B), for S > 1; batch () as it is."""
    if num_samples == 1 or not distribution.batch_shape:
        return distribution
    base = as_diagonal_normal(distribution)
    if base is None:
        return UnflattenedBatch(distribution, num_samples)
    mean, scale = (values.unflatten(0, (num_samples, -1)) for values in (base.loc, base.scale))
    normal = Normal(mean, scale, validate_args=False)
    return Independent(normal, len(distribution.event_shape), validate_args=False)


class UnflattenedBatch(Distribution):
    """A distribution of batch (S B,) that no one knows how to reshape, as batch (S, B)."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, flat: Distribution, num_samples: int) -> None:
        self.flat, self.has_rsample = flat, flat.has_rsample
        self._drawn: tuple[Tensor, Tensor] | None = None
        batch = torch.Size((num_samples, flat.batch_shape[0] // num_samples))
        super().__init__(batch, flat.event_shape, validate_args=False)

    def rsample(self, sample_shape: SampleShape = NO_SHAPE) -> Tensor:
        """(*sample_shape, S, B, *event)."""
        flat = self.flat.rsample(torch.Size(sample_shape))
        z: Tensor = flat.unflatten(len(sample_shape), self.batch_shape)
        self._drawn = (z, flat)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, (*, S, B)."""
        # A flow knows the density of the very tensor that it drew; to invert it for another may take long.
        if self._drawn is not None and value is self._drawn[0]:
            flat = self._drawn[1]
        else:
            flat = value.flatten(first := value.dim() - len(self.event_shape) - 2, first + 1)
        folded: Tensor = self.flat.log_prob(flat).unflatten(-1, self.batch_shape)
        return folded

    @property
    def mean(self) -> Tensor:
        """(S, B, *event)."""
        folded: Tensor = self.flat.mean.unflatten(0, self.batch_shape)
        return folded

    @property
    def mode(self) -> Tensor:
        """(S, B, *event)."""
        folded: Tensor = self.flat.mode.unflatten(0, self.batch_shape)
        return folded


@register_kl(UnflattenedBatch, UnflattenedBatch)  # type: ignore[untyped-decorator]
def _kl_both(q: UnflattenedBatch, p: UnflattenedBatch) -> Tensor:
    """KL(q || p), (S, B)."""
    kl: Tensor = kl_divergence(q.flat, p.flat).unflatten(0, q.batch_shape)
    return kl


@register_kl(UnflattenedBatch, Distribution)  # type: ignore[untyped-decorator]
def _kl_from_unflattened(q: UnflattenedBatch, p: Distribution) -> Tensor:
    """KL(q || p), (S, B), of a p without a batch. NotImplementedError: p has one."""
    if p.batch_shape:
        raise NotImplementedError
    kl: Tensor = kl_divergence(q.flat, p).unflatten(0, q.batch_shape)
    return kl
