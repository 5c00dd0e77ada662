"""Base classes of distributions, and sampling together with the density of the sample."""

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


class SampledWithDensity(UnvalidatedDistribution):
    """A distribution that may know the density of a sample while it draws it, more cheaply than by `log_prob`."""

    def rsample_and_log_prob(self, sample_shape: SampleShape = EMPTY_SHAPE) -> tuple[Tensor, Tensor | None]:
        """A sample and its log density in nats; None where only `log_prob` knows that."""
        raise NotImplementedError


def rsample_and_log_prob(q: Distribution, sample_shape: SampleShape) -> tuple[Tensor, Tensor | None]:
    """A sample of q and its log density, which is None where it is not known from sampling: ask q.log_prob if needed.

    So a flow is not inverted for its own samples, and an ELBO with a closed-form KL computes no density of a Gaussian.
    """
    if isinstance(q, SampledWithDensity):
        return q.rsample_and_log_prob(sample_shape)
    return q.rsample(torch.Size(sample_shape)), None
