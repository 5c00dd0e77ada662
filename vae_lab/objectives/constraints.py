"""A constraint on the distortion in the place of a weight on the KL."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from vae_lab.core import TrainingSpec
from vae_lab.objectives.bounds import BoundTerms, Weight, total_kl
from vae_lab.utils.distributed import all_reduce_mean

MAX_LOG_MULTIPLIER = 10.0  # of the multiplier's logarithm, in both directions


class Constraint(Protocol):
    """Terms to what is maximised, while keeping something within its limit."""

    def __call__(self, terms: BoundTerms, beta: Weight) -> Tensor:
        """(B,), larger is better."""
        ...


class DistortionConstraint(nn.Module):
    """The smallest KL whose distortion, per pixel and channel, is at most `tolerance`: GECO.

    A multiplier of the distortion rises while the constraint is violated and falls while it holds.
    Rezende & Viola 2018, arXiv:1810.00597, algorithm 1. tolerance: nats per pixel and channel, so that one value suits
    any size of image (a density's may be negative). rate: of the multiplier. decay: of the moving average of the
    constraint. Under accumulation the multiplier moves at each batch.
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
        """-(KL + multiplier (distortion - limit)), (B,). While training, the multiplier moves after it was used."""
        excess = -terms.log_px.mean(0) - self.limit
        loss = beta * total_kl(terms).mean(0) + self.log_multiplier.exp() * excess
        if self.training:
            self._update_multiplier(all_reduce_mean(excess.detach().mean() / self.num_dims))
        return -loss

    @property
    def multiplier(self) -> float:
        """How much the distortion weighs now."""
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
