"""Discriminators of latents and images, their losses, and how a penalty evaluates one.

A penalty evaluates its discriminator with constant parameters, so that its gradient reaches the model alone; the
discriminator's own loss takes detached latents and images, and joins the same backward pass. No layer mixes the images
of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus
from torch.nn.utils import parametrizations

from vae_lab.core import ImageShape
from vae_lab.networks.conv import conv_output_side, same_padding
from vae_lab.networks.mlp import dense

KERNEL = 4  # kernel size of the convolutions of stride 2


def leaky_relu() -> nn.Module:
    """Activation of the discriminators: non-zero gradient everywhere, also where the discriminator is confident."""
    return nn.LeakyReLU(0.2)


class LatentDiscriminator(nn.Module):
    """An MLP with one logit per latent."""

    def __init__(self, shape: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        sizes = [math.prod(shape), *hidden]
        self.layers = nn.Sequential(nn.Flatten(), *dense(sizes, leaky_relu), nn.Linear(sizes[-1], 1))

    def forward(self, z: Tensor) -> Tensor:
        """Logits (S, B), float32, of z (S, B, *shape)."""
        logits: Tensor = self.layers(z.flatten(0, 1))
        return logits.float().view(z.shape[:2])


class DiscriminatorOutput(NamedTuple):
    """Output of an image discriminator for N images."""

    logits: Tensor  # (N, K), float32
    features: tuple[Tensor, ...]  # the map after each convolution, (N, channels, h, w)


class ImageDiscriminator(nn.Module):
    """Convolutions of stride 2, and K = num_logits logits of the last feature map.

    The map is halved, rounding down, while its shorter side is at least 4, so any image of at least 2x2 is accepted.
    Channels: `width`, doubled at each convolution up to max_width. spectral_norm: see arXiv:1802.05957.
    """

    def __init__(
        self, in_shape: ImageShape, num_logits: int, width: int, max_width: int = 256, spectral_norm: bool = False
    ) -> None:
        super().__init__()
        channels, *sides = in_shape
        self.stages = nn.ModuleList()
        while not self.stages or min(sides) >= KERNEL:
            wider, pad = min(width << len(self.stages), max_width), same_padding(KERNEL, 2)
            layer = nn.Conv2d(channels, wider, KERNEL, 2, pad)
            self.stages.append(nn.Sequential(layer, leaky_relu()))
            channels, sides = wider, [conv_output_side(side, KERNEL, 2, pad) for side in sides]
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(channels * math.prod(sides), num_logits))
        if spectral_norm:  # of each weight, estimated by power iteration in training
            for part in list(self.modules()):
                if isinstance(part, nn.Linear | nn.Conv2d):
                    parametrizations.spectral_norm(part)

    def forward(self, images: Tensor) -> DiscriminatorOutput:
        """images: (N, C, H, W)."""
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return DiscriminatorOutput(self.head(maps[-1]).float(), tuple(maps[1:]))


def apply_frozen(discriminator: nn.Module, inputs: Tensor) -> Any:
    """Output of the discriminator with constant parameters; its buffers are not updated."""
    state = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    state |= {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    return functional_call(discriminator, state, (inputs,))


def non_saturating_loss(logits: Tensor) -> Tensor:
    """-log of the discriminator's probability of `real`, in nats, any shape. Goodfellow et al. 2014, section 3."""
    return softplus(-logits)


def real_fake_cross_entropy(true: Tensor, *false: Tensor) -> Tensor:
    """Cross-entropy of real against fake inputs given their logits, in nats, (); groups of fakes have equal weight."""
    fake_loss = torch.stack([non_saturating_loss(-logits).mean() for logits in false]).mean()
    return (non_saturating_loss(true).mean() + fake_loss) / 2
