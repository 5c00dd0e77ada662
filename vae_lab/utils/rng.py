"""Randomness as a pure function of (seed, stream, step): no generator state to save or restore."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1

# Streams: independent random numbers at the same seed and step.
TRAIN, EVALUATE, ORDER, BINARIZE, INITIALIZE, FIT = range(6)


def mix(*numbers: int) -> int:
    """A 63-bit seed hashed from integers. splitmix64: Steele et al. 2014, doi:10.1145/2660193.2660195."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def seed_noise(device: torch.device, *numbers: int) -> None:
    """Seed torch's default generator of `device` (1 us; torch.manual_seed costs 150)."""
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(mix(*numbers))
    else:
        torch.default_generator.manual_seed(mix(*numbers))


def epoch_permutation(num_images: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in an epoch, (num_images,)."""
    generator = torch.Generator().manual_seed(mix(seed, ORDER, epoch))
    return torch.randperm(num_images, generator=generator)


def block_permutation(num_images: int, block_size: int, window: int, seed: int, epoch: int) -> Tensor:
    """As `epoch_permutation`, of images stored in blocks: random blocks, shuffled within each `window` of them."""
    generator = torch.Generator().manual_seed(mix(seed, ORDER, epoch))
    blocks = torch.randperm(-(-num_images // block_size), generator=generator)
    rows = (blocks[:, None] * block_size + torch.arange(block_size)).flatten()
    parts = rows[rows < num_images].split(block_size * window)
    return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in parts])
