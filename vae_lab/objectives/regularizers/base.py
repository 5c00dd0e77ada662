"""What every regularizer offers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from vae_lab.core import Observation


class Regularizer(Protocol):
    """A penalty, to be minimised; an nn.Module."""

    weight: float

    def __call__(self, seen: Observation) -> Tensor:
        """(B,) of each image, or () of the whole batch; without `weight`. Its gradient reaches the model alone."""
        ...


class Critic(Protocol):
    """A regularizer with networks of its own, trained inside the step beside the model."""

    critic: nn.Module
    critic_lr: float

    def critic_loss(self, seen: Observation) -> Tensor:
        """What the critic minimises, (). Its gradient reaches the critic alone."""
        ...
