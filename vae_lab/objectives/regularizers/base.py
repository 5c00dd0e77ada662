"""Interfaces of the regularizers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from vae_lab.core import RegularizerInputs


class Regularizer(Protocol):
    """A penalty to minimise; an nn.Module."""

    weight: float

    def __call__(self, inputs: RegularizerInputs) -> Tensor:
        """(B,) per image, or () for the whole batch; without `weight`. Its gradient reaches the model alone."""
        ...


class AdversarialRegularizer(Protocol):
    """A regularizer with a discriminator, trained in the same step as the model."""

    discriminator: nn.Module
    discriminator_lr: float

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor:
        """The loss of the discriminator, (). Its gradient reaches the discriminator alone."""
        ...
