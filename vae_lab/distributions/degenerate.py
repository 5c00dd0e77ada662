"""Distributions without a density: point mass and flat prior. `is_density` is False, `log_prob` 0 by convention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.core import EMPTY_SHAPE, SampleShape


class Delta(Distribution):
    """A point mass. value: (B, *event). It has no density: `log_prob` is 0 by convention, and `is_density` False."""

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True
    is_density = False

    def __init__(self, value: Tensor) -> None:
        self.value = value
        super().__init__(value.shape[:1], value.shape[1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zeros, (*batch) for value (*batch, *event)."""
        return value.new_zeros(value.shape[: value.dim() - len(self.event_shape)])

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


class Improper(Distribution):
    """Weight 1 everywhere: `log_prob` is 0, `is_density` False, and sampling raises NotImplementedError."""

    arg_constraints = {}  # noqa: RUF012
    is_density = False

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        super().__init__(torch.Size(), torch.Size(event_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zeros, (*batch) for value (*batch, *event)."""
        return value.new_zeros(value.shape[: value.dim() - len(self.event_shape)])

    def sample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        raise NotImplementedError(
            "model/prior=flat has no samples. Fit a prior to the latents of the trained model:\n"
            "python -m vae_lab.fit_prior run=..."
        )
