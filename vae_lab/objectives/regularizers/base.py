"""Base classes of the regularizers."""

from __future__ import annotations

from torch import Tensor, nn

from vae_lab.core import RegularizerInputs


class Regularizer(nn.Module):
    """A penalty to minimise."""

    weight: float

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """(B,) per image, or () for the whole batch; without `weight`. Its gradient reaches the model alone."""
        raise NotImplementedError


class AdversarialRegularizer(Regularizer):
    """A regularizer with a discriminator, trained in the same step as the model."""

    discriminator: nn.Module
    discriminator_lr: float

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor:
        """The loss of the discriminator, (). Its gradient reaches the discriminator alone."""
        raise NotImplementedError
