"""Distributions in another shape: vectors at each position as a map, and a flattened batch (S B,) as (S, B)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution, kl_divergence
from torch.distributions.kl import register_kl
from torch.distributions.transforms import ReshapeTransform

from vae_lab.core import EMPTY_SHAPE, SampleShape
from vae_lab.distributions.base import UnvalidatedDistribution, rsample_and_log_prob
from vae_lab.distributions.gaussians import as_diagonal_normal, diagonal_normal


class Reshaped(UnvalidatedDistribution):
    """The distribution `base_dist` in another shape, by four rules."""

    def __init__(self, base: Distribution, batch_shape: SampleShape, event_shape: SampleShape) -> None:
        self.base_dist, self.has_rsample = base, base.has_rsample
        super().__init__(batch_shape, event_shape)

    def from_base(self, value: Tensor) -> Tensor:
        """Values of the base in the new shape."""
        raise NotImplementedError

    def to_base(self, value: Tensor) -> Tensor:
        """Inverse of `from_base`."""
        raise NotImplementedError

    def of_batch(self, density: Tensor) -> Tensor:
        """Log densities, KLs and entropies of the base as those of the new batch."""
        raise NotImplementedError

    def in_base_shape(self, p: Distribution) -> Distribution:
        """The distribution p in the shape of the base. NotImplementedError: it has none."""
        raise NotImplementedError

    def log_prob(self, value: Tensor) -> Tensor:
        return self.of_batch(self.base_dist.log_prob(self.to_base(value)))

    def rsample_and_log_prob(self, sample_shape: SampleShape = EMPTY_SHAPE) -> tuple[Tensor, Tensor | None]:
        z, log_prob = rsample_and_log_prob(self.base_dist, sample_shape)
        return self.from_base(z), None if log_prob is None else self.of_batch(log_prob)

    def rsample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        return self.from_base(self.base_dist.rsample(torch.Size(sample_shape)))

    def sample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        return self.from_base(self.base_dist.sample(torch.Size(sample_shape)))

    @property
    def mean(self) -> Tensor:
        return self.from_base(self.base_dist.mean)

    @property
    def mode(self) -> Tensor:
        return self.from_base(self.base_dist.mode)

    @property
    def variance(self) -> Tensor:
        return self.from_base(self.base_dist.variance)

    def entropy(self) -> Tensor:
        return self.of_batch(self.base_dist.entropy())


@register_kl(Reshaped, Distribution)  # type: ignore[untyped-decorator]
def _kl_reshaped(q: Reshaped, p: Distribution) -> Tensor:
    return q.of_batch(kl_divergence(q.base_dist, q.in_base_shape(p)))


class SpatialDistribution(Reshaped):
    """Independent vectors at the positions of a map: batch (*batch), event (F, h, w).

    base: batch (*batch, h, w), event (F,).
    """

    def __init__(self, base: Distribution) -> None:
        super().__init__(base, base.batch_shape[:-2], base.event_shape + base.batch_shape[-2:])

    def from_base(self, value: Tensor) -> Tensor:
        return value.movedim(-1, -3)

    def to_base(self, value: Tensor) -> Tensor:
        return value.movedim(-3, -1)

    def of_batch(self, density: Tensor) -> Tensor:
        return density.sum((-2, -1))

    def in_base_shape(self, p: Distribution) -> Distribution:
        if isinstance(p, SpatialDistribution):
            return p.base_dist
        normal = as_diagonal_normal(p)
        if normal is None or len(p.event_shape) != len(self.event_shape):
            raise NotImplementedError
        return diagonal_normal(self.to_base(normal.loc), self.to_base(normal.scale), 1)


def to_shape(vectors: Distribution, shape: tuple[int, ...]) -> Distribution:
    """A distribution of vectors as one of events of this shape."""
    if len(shape) == 1:
        return vectors
    return TransformedDistribution(
        vectors, ReshapeTransform(vectors.event_shape, torch.Size(shape)), validate_args=False
    )


def to_spatial(vectors: Distribution) -> Distribution:
    """Distribution of batch (B, h, w) as one of latent maps, batch (B,); batch (B,) unchanged."""
    return SpatialDistribution(vectors) if len(vectors.batch_shape) == 3 else vectors


class UnflattenedBatch(Reshaped):
    """A distribution of batch (S B,) whose parameters cannot be reshaped, with batch (S, B)."""

    def __init__(self, base: Distribution, num_samples: int) -> None:
        super().__init__(base, (num_samples, base.batch_shape[0] // num_samples), base.event_shape)

    def from_base(self, value: Tensor) -> Tensor:
        values: Tensor = value.unflatten(-len(self.event_shape) - 1, self.batch_shape)
        return values

    def to_base(self, value: Tensor) -> Tensor:
        return value.flatten(-len(self.event_shape) - 2, -len(self.event_shape) - 1)

    def of_batch(self, density: Tensor) -> Tensor:
        densities: Tensor = density.unflatten(-1, self.batch_shape)
        return densities

    def in_base_shape(self, p: Distribution) -> Distribution:
        if isinstance(p, UnflattenedBatch):
            return p.base_dist
        if p.batch_shape:
            raise NotImplementedError
        return p


def unflatten_batch(distribution: Distribution, num_samples: int) -> Distribution:
    """Distribution of batch (S B,) with batch (S, B), for S > 1; batch () unchanged."""
    if num_samples == 1 or not distribution.batch_shape:
        return distribution
    base = as_diagonal_normal(distribution)
    if base is None:
        return UnflattenedBatch(distribution, num_samples)
    mean, scale = (values.unflatten(0, (num_samples, -1)) for values in (base.loc, base.scale))
    return diagonal_normal(mean, scale, len(distribution.event_shape))
