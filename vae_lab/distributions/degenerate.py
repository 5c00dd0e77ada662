"""Distributions without a density, whose `log_prob` is 0 by convention: point mass and flat prior."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_lab.core import EMPTY_SHAPE, SampleShape
from vae_lab.distributions.base import UnvalidatedDistribution


class Improper(UnvalidatedDistribution):
    """Weight 1 everywhere; sampling raises NotImplementedError."""

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(self.batch_of(value))

    def sample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        raise NotImplementedError(
            "model/prior=flat has no samples. Fit a prior to the latents of the trained model:\n"
            "python -m vae_lab.fit_prior run=..."
        )


class Delta(UnvalidatedDistribution):
    """A point mass. value: (B, *event)."""

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
