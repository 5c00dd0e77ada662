"""What the families, the priors and the networks have to know of a latent: its kind, its shape, its codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from torch import Tensor
from torch.distributions import Distribution

from vae_lab.data.images import ImageSpec

# Where a latent lives: anywhere in R^D; on the unit sphere in R^D; on finitely many points, its codes.
Kind = Literal["vector", "sphere", "codes"]


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

    kind: Kind
    shape: tuple[int, ...]  # of one z: (D,), or (D, h, w) where the encoder leaves a map
    image: ImageSpec
    num_codes: int | None = None  # K, of codes
    code_shape: tuple[int, ...] = ()  # of the numbers of one z: (G,), or (G, h, w)


class Given(NamedTuple):
    """What a prior may depend on; most need nothing of it."""

    y: Tensor | None = None  # labels of the images, int64 (B,)
    encode: Callable[[Tensor], Distribution] | None = None  # images (N, C, H, W) to q(z|x)
    codes: Codes | None = None  # of the posterior family


NOTHING = Given()
