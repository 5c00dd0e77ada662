"""What every regularizer offers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from vae_lab.core import RegularizerInputs


class Regularizer(Protocol):
    """A penalty, to be minimised; an nn.Module."""

    weight: float

    def __call__(self, inputs: RegularizerInputs) -> Tensor:
        """(B,) of each image, or () of the whole batch; without `weight`. Its gradient reaches the model alone."""
        ...


class AdversarialRegularizer(Protocol):
    """A regularizer with networks of its own, trained inside the step beside the model."""

    discriminator: nn.Module
    discriminator_lr: float

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor:
        """What the discriminator minimises, (). Its gradient reaches the discriminator alone."""
        ...
