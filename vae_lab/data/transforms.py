"""Transforms of stored uint8 images to the model's input x, on the device: augment, to float, binarise, corrupt.

Random numbers come from torch's default generators, which are seeded at every training step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

Binarize = Literal["none", "threshold", "fixed", "dynamic"]
Corruption = Callable[[Tensor], Tensor]  # clean images, float (B, C, H, W) in [0, 1], to corrupted ones


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing of images; the options are those of `data.*`.

    binarize: `none` keeps grey values; `threshold` cuts at 0.5; `fixed` samples each pixel once, from a seed;
    `dynamic` samples anew at each training step (validation and test as `fixed`).
    Of training images: flip, horizontally, with probability 1/2; shift: by at most so many pixels; zoom: by a factor
    between 1 - zoom and 1 + zoom; hue: colours rotated about grey by at most this share of a full turn.
    corruption: applied to the encoder's input in training.
    """

    binarize: Binarize = "none"
    flip: bool = False
    shift: int = 0
    zoom: float = 0.0
    hue: float = 0.0
    corruption: Corruption | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.zoom < 1:
            raise ValueError(f"data.zoom is a relative change of size, from 0 to below 1; found {self.zoom}")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"data.hue is a share of a full turn, from 0 to 0.5; found {self.hue}")

    def train(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float x in [0, 1] or {0, 1}, augmented."""
        if self.flip:
            flipped = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
            images = torch.where(flipped, images.flip(-1), images)
        if self.shift:
            images = random_shift(images, self.shift)
        if self.zoom or self.hue:
            x = random_hue(random_zoom(images.float(), self.zoom), self.hue)
            images = x.round_().clamp_(0, 255).byte()
        if self.binarize == "dynamic":
            return binarize_dynamic(images)
        return self.evaluate(images)

    def corrupt(self, x: Tensor) -> Tensor:
        """The encoder's input in training for x (B, C, H, W)."""
        return x if self.corruption is None else self.corruption(x)

    def evaluate(self, images: Tensor) -> Tensor:
        """Deterministic preprocessing; `ImageDataModule.setup` has sampled any random binarisation before."""
        if self.binarize == "threshold":
            return (images > 127).float()
        return images.float().div_(255)


def random_shift(images: Tensor, most: int) -> Tensor:
    """Shift each image by its own random integers in [-most, most], down and right, edges repeated."""
    batch, channels, height, width = images.shape
    moves = torch.randint(-most, most + 1, (2, batch, 1), device=images.device)
    rows = (torch.arange(height, device=images.device) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + moves[1]).clamp(0, width - 1)
    images = images.gather(2, rows[:, None, :, None].expand(batch, channels, height, width))
    return images.gather(3, columns[:, None, None, :].expand(batch, channels, height, width))


def random_zoom(x: Tensor, most: float) -> Tensor:
    """Resize each float image about its centre by a factor in [1 - most, 1 + most], edges repeated."""
    if not most:
        return x
    factor = 1 + most * (2 * torch.rand(len(x), 1, 1, device=x.device) - 1)
    grid = affine_grid(torch.eye(2, 3, device=x.device) / factor, list(x.shape), align_corners=False)
    return grid_sample(x, grid, padding_mode="border", align_corners=False)


def random_hue(x: Tensor, most: float) -> Tensor:
    """Rotate the colours of each float image about the grey axis by at most `most` turns: white stays white."""
    if not most:
        return x
    x, alpha = x[:, :3], x[:, 3:]
    angle = 2 * math.pi * most * (2 * torch.rand(len(x), 1, 1, 1, device=x.device) - 1)
    grey = x.mean(1, keepdim=True)
    turned = (x.roll(1, 1) - x.roll(-1, 1)) / math.sqrt(3)  # the cross product with the grey axis
    return torch.cat([grey + angle.cos() * (x - grey) + angle.sin() * turned, alpha], 1)


def binarize_dynamic(images: Tensor) -> Tensor:
    """Float images of 0 and 1; each pixel is 1 with probability grey value / 255, to within 2^-16.

    One random 64-bit word decides four pixels: 2.5 times as fast as a random float per pixel.
    """
    words = torch.empty(-(-images.numel() // 4), dtype=torch.int64, device=images.device).random_(-(2**63), None)
    levels = words.view(torch.int16)[: images.numel()].view(images.shape).float()  # -32768, ..., 32767
    # Strictly less: a grey value of 0 never gives 1, a grey value of 255 always does.
    threshold = images.float().mul_(65536 / 255).sub_(32768)
    return torch.lt(levels, threshold, out=levels)


def binarize_fixed(images: Tensor, seed: int, chunk: int = 4096) -> Tensor:
    """uint8 images of 0 and 255; each pixel is 255 with probability grey value / 255.

    Sampled on the CPU from a separate generator, so that a binarised set is the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    binarized = torch.empty_like(images)
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk]
        chance = torch.empty(part.shape).uniform_(0, 255, generator=generator)
        binarized[start : start + chunk] = (chance < part) * 255
    return binarized


@dataclass(frozen=True)
class GaussianNoise:
    """Gaussian noise of standard deviation `scale` on every pixel, clamped to [0, 1]."""

    scale: float = 0.3

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise ValueError(f"data.corruption.scale is a standard deviation, at least 0; found {self.scale}")

    def __call__(self, x: Tensor) -> Tensor:
        return (x + self.scale * torch.randn_like(x)).clamp(0, 1)


@dataclass(frozen=True)
class SaltAndPepper:
    """Each pixel becomes black or white with `probability`, in all channels at once."""

    probability: float = 0.25

    def __post_init__(self) -> None:
        _require_probability(self.probability)

    def __call__(self, x: Tensor) -> Tensor:
        chance = torch.rand_like(x[:, :1])
        salt_or_pepper = (chance < self.probability / 2).to(x.dtype)  # half of the corrupted pixels are white
        return torch.where(chance < self.probability, salt_or_pepper, x)


@dataclass(frozen=True)
class Masked:
    """Each patch of `patch_size` x `patch_size` pixels is set to `value` with `probability`.

    He et al. 2022, arXiv:2111.06377, mask three quarters of the patches.
    """

    probability: float = 0.5
    patch_size: int = 4
    value: float = 0.0

    def __post_init__(self) -> None:
        _require_probability(self.probability)
        if self.patch_size < 1:
            raise ValueError(f"data.corruption.patch_size is a number of pixels, at least 1; found {self.patch_size}")
        if not 0 <= self.value <= 1:
            raise ValueError(f"data.corruption.value is a grey value in [0, 1]; found {self.value}")

    def __call__(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W); patches at the lower and right edges may be cropped."""
        batch, _, height, width = x.shape
        rows, columns = -(-height // self.patch_size), -(-width // self.patch_size)
        hidden = torch.rand(batch, 1, rows, columns, device=x.device) < self.probability
        hidden = hidden.repeat_interleave(self.patch_size, 2).repeat_interleave(self.patch_size, 3)
        return torch.where(hidden[..., :height, :width], self.value, x)


def _require_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"data.corruption.probability is a probability in [0, 1]; found {probability}")
