"""Base classes of the regularizers, discriminators' losses, checks of options and latents, prior samples.

A penalty evaluates its discriminator with constant parameters, so that its gradient reaches the model alone; the
discriminator's own loss takes detached latents and images, and joins the same backward pass. No layer of a
discriminator mixes the images of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from vae_lab.core import Latent, LatentKind, LatentSpec, RegularizerInputs, TrainingSpec

leaky_relu = partial(nn.LeakyReLU, 0.2)  # has a gradient also where a discriminator is confident


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

    def frozen(self, inputs: Tensor) -> Any:
        """Output of the discriminator with constant parameters; its buffers are not updated."""
        state = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        state |= {name: buffer.clone() for name, buffer in self.discriminator.named_buffers()}
        return functional_call(self.discriminator, state, (inputs,))


def non_saturating_loss(logits: Tensor) -> Tensor:
    """-log of the discriminator's probability of `real`, in nats, any shape. Goodfellow et al. 2014, section 3."""
    return softplus(-logits)


def real_fake_cross_entropy(true: Tensor, *false: Tensor) -> Tensor:
    """Cross-entropy of real against fake inputs given their logits, in nats, (); groups of fakes have equal weight."""
    fake_loss = torch.stack([non_saturating_loss(-logits).mean() for logits in false]).mean()
    return (non_saturating_loss(true).mean() + fake_loss) / 2


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
