"""Base class of distributions, sampling together with the density of the sample, point mass and flat prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.core import EMPTY_SHAPE, SampleShape


class UnvalidatedDistribution(Distribution):
    """A distribution that never checks its arguments, which would be read back from the device."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, batch_shape: Sequence[int], event_shape: Sequence[int]) -> None:
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    def batch_of(self, value: Tensor) -> torch.Size:
        """The batch dimensions of value (*batch, *event)."""
        return value.shape[: value.dim() - len(self.event_shape)]

    def rsample_and_log_prob(self, sample_shape: SampleShape = EMPTY_SHAPE) -> tuple[Tensor, Tensor | None]:
        """A sample and its log density in nats; None where sampling does not compute it."""
        return self.rsample(torch.Size(sample_shape)), None


def rsample_and_log_prob(q: Distribution, sample_shape: SampleShape) -> tuple[Tensor, Tensor | None]:
    """A sample of q and its log density, or None where `q.log_prob` has to compute it.

    So a flow is not inverted for its own samples, and an ELBO with a closed-form KL computes no density of a Gaussian.
    """
    if isinstance(q, UnvalidatedDistribution):
        return q.rsample_and_log_prob(sample_shape)
    return q.rsample(torch.Size(sample_shape)), None


class Improper(UnvalidatedDistribution):
    """Weight 1 everywhere: log_prob is 0 by convention, sampling raises NotImplementedError."""

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(self.batch_of(value))

    def sample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        raise NotImplementedError(
            "model/prior=flat has no samples. Fit a prior to the latents of the trained model:\n"
            "python -m vae_lab.fit_prior run=..."
        )


class Delta(UnvalidatedDistribution):
    """A point mass, without a density: log_prob is 0 by convention. value: (B, *event)."""

    has_rsample = True

    def __init__(self, value: Tensor) -> None:
        self.value = value
        super().__init__(value.shape[:1], value.shape[1:])

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(self.batch_of(value))

    def rsample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        return self.value.expand(self._extended_shape(torch.Size(sample_shape)))

    @property
    def mean(self) -> Tensor:
        return self.value

    @property
    def mode(self) -> Tensor:
        return self.value

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.value)
