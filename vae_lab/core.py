"""The vocabulary that every package may import: what an image, a latent and a pass through a model are; no logic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

ImageShape = tuple[int, int, int]
SampleShape = torch.Size | list[int] | tuple[int, ...]
NO_SHAPE = torch.Size()


@dataclass(frozen=True)
class ImageSpec:
    """The shape and kind of one image; every size in a model is derived from it.

    `levels` is the number of values a pixel takes: 2 once binarised, 256 for grey or colour.
    """

    channels: int
    height: int
    width: int
    levels: int = 256
    num_classes: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def num_dims(self) -> int:
        """Pixels times channels, the D of bits per dimension."""
        return math.prod(self.shape)


# Where a latent lives: anywhere in R^D; on the unit sphere in R^D; on finitely many points, its codes.
LatentKind = Literal["vector", "sphere", "codes"]


class Codes(Protocol):
    """Finitely many values of a latent: `positions` code numbers each, of `num_codes` there are."""

    num_codes: int  # K

    def indices(self, z: Tensor) -> Tensor:
        """The numbers of codes that latents consist of, int64. z: (N, F, *map) to (N, G, *map)."""
        ...

    def embed(self, indices: Tensor) -> Tensor:
        """The latents of code numbers, (N, G, *map) to (N, F, *map); no gradient."""
        ...


class LatentSpec(NamedTuple):
    """What a prior is told of the latent that it is to cover."""

    kind: LatentKind
    shape: tuple[int, ...]  # of one z: (D,), or (D, h, w) where the encoder leaves a map
    image: ImageSpec
    num_codes: int | None = None  # K, of codes
    code_shape: tuple[int, ...] = ()  # of the numbers of one z: (G,), or (G, h, w)


class PriorInputs(NamedTuple):
    """What a prior may depend on; most need nothing of it."""

    y: Tensor | None = None  # labels of the images, int64 (B,)
    encode: Callable[[Tensor], Distribution] | None = None  # images (N, C, H, W) to q(z|x)
    codes: Codes | None = None  # of the posterior family


NO_INPUTS = PriorInputs()


class Latent(NamedTuple):
    """One stochastic layer: S posterior samples of B images."""

    z: Tensor  # (S, B, *event)
    posterior: Distribution  # q(z|x), batch (B,) or (S, B)
    prior: Distribution  # p(z), batch () or (B,) or (S, B)

    @property
    def log_ratio(self) -> Tensor:
        """log q(z|x) - log p(z), (S, B); computed when asked, for an ELBO with a KL in closed form never asks."""
        return self.posterior.log_prob(self.z) - self.prior.log_prob(self.z)


class Trace(NamedTuple):
    """A likelihood, and the latents it was decoded from, from the top of the hierarchy down."""

    likelihood: Distribution  # p(x|z), batch (S, B), event (C, H, W)
    latents: tuple[Latent, ...]


class Posterior(Protocol):
    """q(z|x) from an encoder's output (B, num_params, *map)."""

    kind: LatentKind
    num_params: int
    num_features: int  # mostly latent_dim

    def __call__(self, params: Tensor) -> Distribution:
        """Batch (B,), event (num_features, *map)."""
        ...


class Prior(Protocol):
    """p(z), or p(z|y)."""

    kinds: tuple[LatentKind, ...]

    def __call__(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """Event the latent's shape; batch (), or (B,) where the prior depends on the labels."""
        ...


class Likelihood(Protocol):
    """p(x|z) from a decoder's output (*batch, num_channels, H, W)."""

    num_channels: int
    levels: int | None  # pixel values of which it is a mass function; None for a density

    def __call__(self, params: Tensor) -> Distribution:
        """The given batch, event (C, H, W)."""
        ...


@runtime_checkable
class ConditionalPrior(Prior, Protocol):
    """p(z | what is above); without anything above, what its call gives."""

    num_params: int  # asked of what is above

    def conditioned_on(self, params: Tensor) -> Distribution:
        """params: (N, num_params, *map). Batch (N,)."""
        ...


@runtime_checkable
class RelativePosterior(Posterior, Protocol):
    """q(z|x) told by its difference from a prior; its call takes a standard normal one."""

    def relative_to(self, prior: Distribution, params: Tensor) -> Distribution:
        """params: (N, num_params, *map); of 0, the prior. Batch (N,). ValueError: a prior of another family."""
        ...


class TrainingSpec(NamedTuple):
    """What a regularizer is told when it is made (a config leaves it open with `_partial_`)."""

    image: ImageSpec
    latents: tuple[LatentSpec, ...]  # of each stochastic layer, from the top down; mostly one
    num_images: int  # N, of the training set


class RegularizerInputs(NamedTuple):
    """What it is shown at a step: one batch of B images."""

    trace: Trace
    x: Tensor  # the clean images, (B, C, H, W)
    decode: Callable[[Tensor], Distribution]  # z of the batch (*, B, *event) to p(x|z); with the labels, if there are
    layers: Iterable[nn.Module]  # of the model
