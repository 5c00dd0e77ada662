"""Base classes of the regularizers, checks of their options and latents, and prior samples to compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_lab.core import Latent, LatentKind, LatentSpec, RegularizerInputs, TrainingSpec


class Regularizer(nn.Module):
    """A penalty to minimise. name: of its config group, for messages. ValueError: a weight below 0."""

    def __init__(self, name: str, weight: float) -> None:
        super().__init__()
        require_number(name, "weight", weight)
        self.weight = weight

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """(B,) per image, or () for the whole batch; without `weight`. Its gradient reaches the model alone."""
        raise NotImplementedError


class AdversarialRegularizer(Regularizer):
    """A regularizer with a discriminator, trained in the same step as the model. widths: of its layers."""

    discriminator: nn.Module

    def __init__(self, name: str, weight: float, discriminator_lr: float, widths: Sequence[int]) -> None:
        super().__init__(name, weight)
        require_number(name, "discriminator_lr", discriminator_lr, above=True)
        if not widths or min(widths) < 1:
            raise ValueError(
                f"objective.regularizers.{name}: a discriminator needs at least one hidden layer, each at least 1 "
                f"wide; found {list(widths)}"
            )
        self.discriminator_lr = discriminator_lr

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor:
        """The loss of the discriminator, (). Its gradient reaches the discriminator alone."""
        raise NotImplementedError


def require_number(name: str, option: str, value: float, above: bool = False) -> None:
    """Raise ValueError unless an option of the regularizer `name` is finite and at least 0; above: more than 0."""
    if not math.isfinite(value) or value < 0 or (above and value == 0):
        raise ValueError(
            f"objective.regularizers.{name}.{option} is a number {'above' if above else 'of at least'} 0; found {value}"
        )


def require_single_latent(spec: TrainingSpec, name: str, kinds: tuple[LatentKind, ...] = ("vector",)) -> LatentSpec:
    """The only latent of the model. ValueError: several layers, or a kind that is not in `kinds`."""
    if len(spec.latents) != 1:
        raise ValueError(
            f"objective.regularizers.{name} supports one layer of latents, and this model has {len(spec.latents)} "
            "layers.\nChoose a model of one layer (model=mlp, conv or resnet), or remove the regularizer"
        )
    [latent] = spec.latents
    if latent.kind not in kinds:
        raise ValueError(
            f"objective.regularizers.{name} supports latents of the kind {' or '.join(kinds)}; found the kind "
            f"{latent.kind}.\nChoose another model/posterior, such as diagonal_gaussian, or remove the regularizer"
        )
    return latent


def sample_prior(latent: Latent, batch: Sequence[int]) -> Tensor:
    """Samples from p(z) for a batch (S, B) or (B,): (*batch, *event), detached. ValueError: p(z) has no samples."""
    own = len(latent.prior.batch_shape)  # a prior conditional on labels has a distribution per image
    # Normal.sample checks its scales on the host, which a GPU would wait for and a CUDA graph cannot record.
    draw = latent.prior.rsample if latent.prior.has_rsample else latent.prior.sample
    try:
        return draw(torch.Size(batch[: len(batch) - own])).detach()
    except NotImplementedError as error:
        raise ValueError(
            "model.prior: a regularizer needs prior samples, and this prior has no samples.\n"
            "Choose one that has, such as model/prior=standard_normal"
        ) from error
