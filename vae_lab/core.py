"""Shared types: image and latent specs, traces, and the base classes of model parts. Every package may import them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

ImageShape = tuple[int, int, int]
SampleShape = torch.Size | list[int] | tuple[int, ...]
EMPTY_SHAPE = torch.Size()


@dataclass(frozen=True)
class ImageSpec:
    """Shape and pixel values of one image; every size in a model is derived from it."""

    channels: int
    height: int
    width: int
    levels: int = 256  # values a pixel takes: 2 if binarised, 256 for grey or colour
    num_classes: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def num_dims(self) -> int:
        """C*H*W, the D of bits per dimension."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{shape}, {self.levels} values a pixel, {self.num_classes or 'no'} classes"


# The space of a latent: R^D, the unit sphere in R^D, or a finite set of codes.
LatentKind = Literal["vector", "sphere", "codes"]


class Codes(Protocol):
    """A discrete latent: z as G code indices (per position of a feature map), each one of `num_codes`."""

    @property
    def num_codes(self) -> int:
        """K."""
        ...

    def indices(self, z: Tensor) -> Tensor:
        """The code indices of latents, int64. z: (N, F, *map) to (N, G, *map)."""
        ...

    def embed(self, indices: Tensor) -> Tensor:
        """The latents of code indices, (N, G, *map) to (N, F, *map); no gradient."""
        ...


class LatentSpec(NamedTuple):
    """The latent that a prior is built for."""

    kind: LatentKind
    shape: tuple[int, ...]  # of one z: (D,), or (D, h, w) if the encoder outputs a feature map
    image: ImageSpec
    num_codes: int | None = None  # K, codebook size
    code_shape: tuple[int, ...] = ()  # of the code indices of one z: (G,), or (G, h, w)


class PriorInputs(NamedTuple):
    """What a prior may depend on; most priors ignore it."""

    y: Tensor | None = None  # labels of the images, int64 (B,)
    encode: Callable[[Tensor], Distribution] | None = None  # images (N, C, H, W) to q(z|x)
    codes: Codes | None = None  # of the posterior family


NO_INPUTS = PriorInputs()


class Latent(NamedTuple):
    """One stochastic layer: S posterior samples of B images."""

    z: Tensor  # (S, B, *event)
    posterior: Distribution  # q(z|x), batch (B,) or (S, B)
    prior: Distribution  # p(z), batch () or (B,) or (S, B)
    log_q: Tensor | None = None  # log q(z|x), (S, B), where sampling computed it; None: computed if needed

    @property
    def log_ratio(self) -> Tensor:
        """log q(z|x) - log p(z), (S, B); computed on access, since an ELBO with a closed-form KL does not use it."""
        log_q = self.posterior.log_prob(self.z) if self.log_q is None else self.log_q
        return log_q - self.prior.log_prob(self.z)


class Trace(NamedTuple):
    """A likelihood and the latents it was decoded from, ordered from the top of the hierarchy down."""

    likelihood: Distribution  # p(x|z), batch (S, B), event (C, H, W)
    latents: tuple[Latent, ...]


class Posterior(nn.Module):
    """q(z|x) from an encoder's output (B, num_params, *map)."""

    kind: LatentKind = "vector"
    is_density = True  # False: log q(z|x) does not exist, and is 0 by convention
    num_params: int
    num_features: int  # usually latent_dim
    __call__: Callable[..., Distribution]

    def __init__(self) -> None:
        super().__init__()
        self.codes: Codes | None = None  # of latents of the kind "codes"

    def forward(self, params: Tensor) -> Distribution:
        """Batch (B,), event (num_features, *map)."""
        raise NotImplementedError


class RelativePosterior(Posterior):
    """q(z|x) parametrised relative to a prior; its call assumes a standard normal prior."""

    def relative_to(self, prior: Distribution, params: Tensor) -> Distribution:
        """params: (N, num_params, *map); zeros give the prior. Batch (N,). ValueError: a prior of another family."""
        raise NotImplementedError


class Prior(nn.Module):
    """p(z), or p(z|y)."""

    kinds: tuple[LatentKind, ...] = ("vector",)  # of latents that it is a distribution over
    is_density = True
    needs_labels = False
    needs_encoder = False
    has_fit = False
    __call__: Callable[..., Distribution]

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """Event: the shape of the latent; batch (), or (B,) if the prior depends on the labels."""
        raise NotImplementedError

    def fit(self, z: Tensor) -> None:
        """Fit to latents z (N, *shape) without gradients, where `has_fit`. ValueError: too few of them."""
        raise NotImplementedError


class ConditionalPrior(Prior):
    """p(z | layers above); its call gives the p(z) of a layer with none above."""

    num_params: int  # channels required from the layer above

    def conditioned_on(self, params: Tensor) -> Distribution:
        """params: (N, num_params, *map). Batch (N,)."""
        raise NotImplementedError


class TrainingSpec(NamedTuple):
    """Constructor input of a regularizer (its config node is `_partial_`)."""

    image: ImageSpec
    latents: tuple[LatentSpec, ...]  # of each stochastic layer, from the top down; usually one
    num_images: int  # N, of the training set


class RegularizerInputs(NamedTuple):
    """Input of a regularizer at each step: one batch of B images."""

    trace: Trace
    x: Tensor  # the clean images, (B, C, H, W)
    decode: Callable[[Tensor], Distribution]  # z of the batch (*, B, *event) to p(x|z), given its labels if any
    layers: Iterable[nn.Module]  # of the model
