"""What pictures are drawn from: a model at one moment, and a few images to look at it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol, TypedDict

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

CHUNK = 256  # images encoded or decoded at once: activations of 128x128 maps are large


class Model(Protocol):
    """What a picture asks of a VAE with one vector of latents."""

    encoder: nn.Module  # (B, C, H, W) to (B, num_params)
    decoder: nn.Module  # (B, D) to parameters of the likelihood
    latent_shape: tuple[int, ...]

    @property
    def prior(self) -> Callable[[], Distribution]:
        """p(z), event (D,)."""
        ...

    def encode(self, x: Tensor) -> Distribution:
        """q(z|x), batch (B,), event (D,)."""
        ...

    def decode(self, z: Tensor) -> Distribution:
        """p(x|z), batch z.shape[:-1], event (C, H, W)."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """As nn.Module."""
        ...


class SizeOptions(TypedDict, total=False):
    """Those of `Sizes`, by which a config names them."""

    num_images: int
    num_samples: int
    grid_size: int
    num_traversed: int
    num_steps: int
    num_pairs: int
    num_scatter: int
    interpolation: Literal["spherical", "linear"]
    seed: int


@dataclass(frozen=True)
class Sizes:
    """How much each picture shows. ValueError: an unknown interpolation, or a number below 1."""

    num_images: int = 16  # pairs of original and reconstruction
    num_samples: int = 64  # from the prior, the same latents every time
    grid_size: int = 20  # images along each side of the latent grid; fewer where they would exceed 1,400 pixels
    num_traversed: int = 32  # dimensions traversed, the most active first
    num_steps: int = 11  # images along a traversal or an interpolation
    num_pairs: int = 8  # interpolations
    num_scatter: int = 2000  # images in the latent scatter, the aggregate posterior and the projector
    interpolation: Literal["spherical", "linear"] = "spherical"
    seed: int = 0  # of the latents of the samples

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and name != "seed" and value < 1:
                raise ValueError(f"{name} is {value}; pictures need at least 1")
        if self.interpolation not in ("spherical", "linear"):
            raise ValueError(f"interpolation is {self.interpolation!r}; it is 'spherical' or 'linear'")


@dataclass(frozen=True)
class Examples:
    """Images to look at, with what is known of them; there may be none."""

    x: Tensor  # (N, C, H, W) in [0, 1]
    labels: Tensor | None = None  # int64 (N,)
    class_names: tuple[str, ...] = ()
    split: str = "test"


@contextmanager
def looking_at(model: Model, device: torch.device, seed: int) -> Iterator[None]:
    """Eval mode, no gradients, a random state of our own; everything is as it was afterwards."""
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


@dataclass(frozen=True)
class Scene:
    """A model at one moment, and the images it is looked at with. Used under `looking_at`."""

    model: Model
    device: torch.device
    examples: Examples
    sizes: Sizes = field(default_factory=Sizes)
    when: str = ""  # "epoch 7", for the titles
    known_kl: Tensor | None = None  # (D,), of the last validation

    @property
    def latent_dim(self) -> int:
        """D."""
        return self.model.latent_shape[0]

    def title(self, what: str) -> str:
        """With the moment."""
        return f"{what}, {self.when}" if self.when else what

    @cached_property
    def posterior(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, scale and one sample of q(z|x) for every example, (N, D) each, on the CPU."""
        parts = []
        for x in torch.split(self.examples.x, CHUNK):
            q = self.model.encode(x.to(self.device))
            parts.append(torch.stack([q.mean, q.stddev, q.sample()]).float().cpu())
        mean, scale, sample = torch.cat(parts, dim=1).nan_to_num()
        return mean, scale, sample

    @cached_property
    def kl(self) -> Tensor:
        """KL of each dimension in nats, (D,): of the last validation, else of the examples to N(0, 1)."""
        if self.known_kl is not None:
            return self.known_kl.detach().float().cpu().nan_to_num()
        mean, scale, _ = self.posterior
        variance = scale.square().clamp(min=1e-12)
        return (0.5 * (mean.square() + variance - 1 - variance.log())).mean(0).nan_to_num()

    @property
    def by_activity(self) -> list[int]:
        """The dimensions, the largest KL first."""
        return [int(dim) for dim in self.kl.argsort(descending=True, stable=True)]

    def decode(self, z: Tensor) -> Tensor:
        """(..., D) to the mean of p(x|z), float (..., C, H, W) on the CPU."""
        chunks = torch.split(z.flatten(0, -2), CHUNK)
        images = torch.cat([self.model.decode(part.to(self.device)).mean.float().cpu() for part in chunks])
        return images.reshape(*z.shape[:-1], *images.shape[1:])
