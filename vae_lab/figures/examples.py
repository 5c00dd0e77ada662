"""Inputs of the pictures: the model interface they need, example images, evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.models.base import Model


class SingleLayerModel(Protocol):
    """Interface of a model with a single layer of latents, as pictures of the latents need it."""

    encoder: nn.Module
    decoder: nn.Module

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one z: (D,), or (F, h, w)."""
        ...

    def encode(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """q(z|x), batch (B,)."""
        ...

    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x|z), batch of z's leading dimensions, event (C, H, W)."""
        ...

    def prior_distribution(self, y: Tensor | None = None) -> Distribution:
        """p(z), batch (); or (B,) where the prior depends on the labels."""
        ...

    def sample_latents(self, num_images: int, y: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Latents from the prior, (num_images, *latent_shape)."""
        ...

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x|z) at the centre of q(z|x), batch (B,)."""
        ...


def has_single_layer(model: Model) -> bool:
    """Whether the model has one q(z|x), one p(z) and one p(x|z)."""
    return not model.is_hierarchy


@dataclass(frozen=True)
class ExampleImages:
    """Example images with labels and class names, where known; may be empty."""

    x: Tensor  # (N, C, H, W) in [0, 1]
    labels: Tensor | None = None  # int64 (N,)
    class_names: tuple[str, ...] = ()
    split: str = "test"

    def __len__(self) -> int:
        return len(self.x)

    def class_name(self, label: int) -> str:
        """Name of the class; its index if the classes have no names."""
        return self.class_names[label] if label < len(self.class_names) else str(label)


@contextmanager
def evaluation_mode(model: Model, device: torch.device, seed: int) -> Iterator[None]:
    """Evaluation mode, no gradients, seeded random numbers; modes and random state are restored on exit."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [device] if device.type == "cuda" else []
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield
    finally:
        for module, mode in modes:
            module.training = mode
