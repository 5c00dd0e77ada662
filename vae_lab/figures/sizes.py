"""Sizes of the pictures, the options `callbacks.images.*`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

Interpolation = Literal["spherical", "linear"]


class SizeOptions(TypedDict, total=False):
    """Keyword arguments of `FigureSizes`, named as in the config."""

    num_images: int
    num_samples: int
    grid_size: int
    num_traversed: int
    num_steps: int
    num_pairs: int
    num_scatter: int
    interpolation: Interpolation
    seed: int


@dataclass(frozen=True)
class FigureSizes:
    """Sizes of the pictures. ValueError: an unknown interpolation, or a size below 1."""

    num_images: int = 16  # originals, each with its reconstruction
    num_samples: int = 64  # from the prior, the same latents every time
    grid_size: int = 20  # images along each side of the latent grid; fewer where they would exceed 1,400 pixels
    num_traversed: int = 32  # dimensions traversed, most active first
    num_steps: int = 11  # images along a traversal or an interpolation
    num_pairs: int = 8  # interpolations
    num_scatter: int = 2000  # images in the latent scatter, the aggregate posterior, the code usage and the projector
    interpolation: Interpolation = "spherical"
    seed: int = 0  # of the prior samples

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and name != "seed" and value < 1:
                raise ValueError(f"callbacks.images.{name} is {value}; expected at least 1")
        if self.interpolation not in ("spherical", "linear"):
            raise ValueError(f"callbacks.images.interpolation is {self.interpolation!r}; use 'spherical' or 'linear'")
