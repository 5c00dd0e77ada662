"""The context that pictures are drawn from: a model at one step, example images and sizes.

Random numbers are seeded where they are used, so that a picture depends neither on other pictures nor on the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypedDict, cast

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.core import Trace
from vae_lab.figures.canvas import printable
from vae_lab.figures.latent_paths import Interpolation
from vae_lab.figures.latent_space import CHUNK, LatentSpace, chunks
from vae_lab.metrics.diagnostics import code_indices
from vae_lab.models.base import Model
from vae_lab.models.vae import VAE
from vae_lab.objectives.bounds import closed_form_kl

NUM_KL_IMAGES = 64  # images over which the KL of each layer is averaged


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


@dataclass(frozen=True)
class ExampleImages:
    """At least one image, with labels and class names where known."""

    x: Tensor  # (N, C, H, W) in [0, 1]
    labels: Tensor | None = None  # int64 (N,)
    class_names: tuple[str, ...] = ()
    split: str = "test"

    def __len__(self) -> int:
        return len(self.x)

    def class_name(self, label: int) -> str:
        """Name of the class; its index if the classes have no names."""
        return printable(self.class_names[label]) if label < len(self.class_names) else str(label)


@dataclass(frozen=True)
class FigureContext:
    """A model at one step, and example images. Use it inside `evaluation_mode`."""

    model: Model
    examples: ExampleImages
    sizes: FigureSizes = field(default_factory=FigureSizes)
    when: str = ""  # e.g. "epoch 7", for titles
    validation_kl: Tensor | None = None  # (D,), from the last validation
    corrupted: Callable[[Tensor], Tensor] | None = None  # corrupts the encoder's input in training

    def title(self, what: str) -> str:
        return f"{what}, {self.when}" if self.when else what

    @property
    def class_names(self) -> list[str]:
        return [self.examples.class_name(label) for label in range(self.model.image.num_classes)]

    def labels(self, count: int) -> Tensor | None:
        """Labels of the first images, (count,) on the model's device; None for an unconditional model."""
        known = self.examples.labels if self.model.conditional else None
        return None if known is None else known[:count].to(self.model.device)

    @property
    def first_label(self) -> Tensor | None:
        """Label of the first image, (); None for an unconditional model."""
        labels = self.labels(1)
        return None if labels is None else labels[0]

    @cached_property
    def space(self) -> LatentSpace:
        """Latents of a model with a single layer of them."""
        x = self.examples.x
        return LatentSpace(cast(VAE, self.model), x, self.labels(len(x)), self.sizes.seed, self.validation_kl)

    @property
    def has_continuous_latents(self) -> bool:
        """Whether the model has a single layer of latents that are not codes."""
        return not self.model.is_hierarchy and self.model.latents[0].kind != "codes"

    @property
    def has_vector(self) -> bool:
        """Whether they are a vector, not a map."""
        return self.has_continuous_latents and len(self.model.latents[0].shape) == 1

    @property
    def centre_name(self) -> str:
        """Name of the point estimate of a posterior."""
        return "mean direction" if self.model.latents[0].kind == "sphere" else "mean"

    def reconstruct(self, x: Tensor) -> Distribution:
        """p(x|z) at the point estimate of q(z|x), batch (count,). x: the first images, or these corrupted."""
        torch.manual_seed(self.sizes.seed)
        return self.model.reconstruct(x.to(self.model.device), self.labels(len(x)))

    def sample(self, count: int, y: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Means of p(x|z) at latents from the prior, (count, C, H, W) on the CPU. y: labels (count,).

        Uses the same random numbers every time: images change only with the model, the labels and the temperature.
        """
        torch.manual_seed(self.sizes.seed)
        images = []
        for first in range(0, count, CHUNK):
            labels = None if y is None else y[first : first + CHUNK].to(self.model.device)
            images.append(self.model.sample(min(CHUNK, count - first), labels, temperature).mean.float().cpu())
        return torch.cat(images)

    @cached_property
    def can_sample(self) -> bool:
        return self._can_sample_at(1.0, NotImplementedError)

    @cached_property
    def can_sample_at_temperature(self) -> bool:
        """Whether the prior can be sampled at temperatures other than 1."""
        return self._can_sample_at(0.5, NotImplementedError, ValueError)

    def _can_sample_at(self, temperature: float, *refusals: type[Exception]) -> bool:
        try:
            self.sample(1, torch.zeros(1, dtype=torch.int64) if self.model.conditional else None, temperature)
        except refusals:
            return False
        return True

    def traces(self, count: int) -> Iterator[Trace]:
        """Traces of the first images, in chunks."""
        torch.manual_seed(self.sizes.seed)
        for x, y in chunks(self.model.device, self.examples.x[:count], self.labels(count)):
            yield self.model(x, 1, y)

    def layer_kl(self) -> Tensor:
        """KL of each layer in nats, (L,), averaged over the first images."""
        (trace,) = self.traces(NUM_KL_IMAGES)
        return torch.stack([closed_form_kl(latent).mean() for latent in trace.latents]).float().cpu()

    def code_counts(self) -> dict[int, Tensor]:
        """For each layer of codes, by its index: how often each of its G variables took each of K codes, (G, K)."""
        sizes = {layer: latent.num_codes for layer, latent in enumerate(self.model.latents) if latent.num_codes}
        counts = {layer: torch.zeros(self.model.latents[layer].code_shape[0], size) for layer, size in sizes.items()}
        for trace in self.traces(len(self.examples)):
            for layer, size in sizes.items():
                for row, indices in enumerate(code_indices(trace.latents[layer], size).cpu().unbind(1)):
                    counts[layer][row] += indices.flatten().bincount(minlength=size)
        return counts
