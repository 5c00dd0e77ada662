"""A constraint on the distortion instead of a weight on the KL."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from vae_lab.core import TrainingSpec
from vae_lab.objectives.bounds import BoundTerms, Weight, total_kl
from vae_lab.utils.distributed import all_reduce_mean

MAX_LOG_MULTIPLIER = 10.0  # the log multiplier is clamped to plus or minus this


class Constraint(Protocol):
    """A constrained objective to maximise, computed from the terms of a bound."""

    def __call__(self, terms: BoundTerms, beta: Weight) -> Tensor:
        """(B,), larger is better."""
        ...


class DistortionConstraint(nn.Module):
    """The smallest KL at a distortion of at most `tolerance` per pixel and channel: GECO.

    The multiplier of the distortion rises while the constraint is violated and falls while it holds.
    Rezende & Viola 2018, arXiv:1810.00597, algorithm 1. tolerance: nats per pixel and channel, independent of the image
    size (may be negative for a density). rate: step size of the log multiplier. decay: of the moving average of the
    constraint. Under gradient accumulation the multiplier is updated at each batch.
    """

    log_multiplier: Tensor
    average: Tensor
    num_updates: Tensor

    def __init__(self, spec: TrainingSpec, tolerance: float, rate: float = 0.01, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1 or rate <= 0:
            raise ValueError(
                f"objective.constraint: decay lies in [0, 1) and rate is above 0; found decay={decay}, rate={rate}"
            )
        self.limit, self.rate, self.decay = tolerance * spec.image.num_dims, rate, decay
        self.num_dims = spec.image.num_dims
        for name in ("log_multiplier", "average", "num_updates"):
            self.register_buffer(name, torch.zeros(()))

    def forward(self, terms: BoundTerms, beta: Weight) -> Tensor:
        """-(beta KL + multiplier (distortion - limit)), (B,). In training mode, the multiplier is updated after use."""
        excess = -terms.log_px.mean(0) - self.limit
        loss = beta * total_kl(terms).mean(0) + self.log_multiplier.exp() * excess
        if self.training:
            self._update_multiplier(all_reduce_mean(excess.detach().mean() / self.num_dims))
        return -loss

    @property
    def multiplier(self) -> float:
        """The current weight of the distortion."""
        return float(self.log_multiplier.exp())

    @torch.no_grad()
    def _update_multiplier(self, excess: Tensor) -> None:
        first = self.num_updates == 0
        average = torch.where(first, excess, torch.lerp(excess, self.average, self.decay))
        self.log_multiplier.copy_(
            (self.log_multiplier + self.rate * average).clamp(-MAX_LOG_MULTIPLIER, MAX_LOG_MULTIPLIER)
        )
        self.average.copy_(average)
        self.num_updates.add_(1)
