"""What every regularizer is told when it is made, is shown at each step, and has to offer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.data.images import ImageSpec
from vae_lab.latents import LatentSpec
from vae_lab.trace import Trace


class Setting(NamedTuple):
    """What a regularizer is told when it is made (a config leaves it open with `_partial_`)."""

    image: ImageSpec
    latents: tuple[LatentSpec, ...]  # of each stochastic layer, from the top down; mostly one
    num_images: int  # N, of the training set


class Observation(NamedTuple):
    """What it is shown at a step: one batch of B images."""

    trace: Trace
    x: Tensor  # the clean images, (B, C, H, W)
    decode: Callable[[Tensor], Distribution]  # z of the batch (*, B, *event) to p(x|z); with the labels, if there are
    layers: Iterable[nn.Module]  # of the model


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
