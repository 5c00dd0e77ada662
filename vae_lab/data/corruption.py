"""Ways to spoil the images that an encoder sees while it is trained; what is scored is the clean image.

A denoising autoencoder: Vincent et al. 2008, doi:10.1145/1390156.1390294; with a variational one, Im et al. 2017,
arXiv:1511.06406. Randomness comes from torch's default generators, which every training step seeds itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Corruption(Protocol):
    """Clean images to spoiled ones."""

    def __call__(self, x: Tensor) -> Tensor:
        """x: float (B, C, H, W) in [0, 1] to the same shape and range."""
        ...


@dataclass(frozen=True)
class GaussianNoise:
    """Noise of standard deviation `scale` on every pixel, cut to [0, 1]."""

    scale: float = 0.3

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise ValueError(f"data.corruption.scale is a standard deviation, at least 0; found {self.scale}")

    def __call__(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        return (x + self.scale * torch.randn_like(x)).clamp(0, 1)


@dataclass(frozen=True)
class SaltAndPepper:
    """Each pixel becomes black or white with `probability`, in all channels at once."""

    probability: float = 0.25

    def __post_init__(self) -> None:
        _require_probability(self.probability)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        chance = torch.rand_like(x[:, :1])
        spoiled = (chance < self.probability / 2).to(x.dtype)  # of those below `probability`, half are white
        return torch.where(chance < self.probability, spoiled, x)


@dataclass(frozen=True)
class Masked:
    """Each patch of `patch_size` x `patch_size` pixels is painted `value` with `probability`.

    He et al. 2022, arXiv:2111.06377, hides three quarters of the patches.
    """

    probability: float = 0.5
    patch_size: int = 4
    value: float = 0.0

    def __post_init__(self) -> None:
        _require_probability(self.probability)
        if self.patch_size < 1:
            raise ValueError(f"data.corruption.patch_size are pixels, at least 1; found {self.patch_size}")
        if not 0 <= self.value <= 1:
            raise ValueError(f"data.corruption.value is a grey value in [0, 1]; found {self.value}")

    def __call__(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W); patches at the lower and right edge may be cut."""
        batch, _, height, width = x.shape
        rows, columns = -(-height // self.patch_size), -(-width // self.patch_size)
        hidden = torch.rand(batch, 1, rows, columns, device=x.device) < self.probability
        hidden = hidden.repeat_interleave(self.patch_size, 2).repeat_interleave(self.patch_size, 3)
        return torch.where(hidden[..., :height, :width], self.value, x)


def _require_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"data.corruption.probability lies in [0, 1]; found {probability}")
