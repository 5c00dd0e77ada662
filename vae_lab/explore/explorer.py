"""What the page shows, computed without it: places in latent space, what is decoded there, and ways to get there.

A place is a latent z (D,), flat on the CPU; an image is float (C, H, W) in [0, 1]. Each random number has a seed.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, cast

import torch
from omegaconf import OmegaConf
from torch import Tensor

from vae_lab.data.decode import PictureOptions, decode
from vae_lab.data.transforms import Preprocess, binarize_fixed
from vae_lab.figures.canvas import latent_name
from vae_lab.figures.context import ExampleImages, FigureContext
from vae_lab.figures.grids import REACH
from vae_lab.figures.latent_paths import Interpolation, path_between, principal_directions
from vae_lab.inference import Lab
from vae_lab.models.base import evaluation_mode
from vae_lab.models.ladder import LadderVAE
from vae_lab.models.vae import VAE

MAX_AXES = 10


class Axes(NamedTuple):
    """Directions in latent space that sliders move along."""

    names: list[str]
    directions: Tensor  # (K, D), orthonormal
    origin: Tensor  # (D,)
    lowest: Tensor  # (K,)
    highest: Tensor  # (K,)

    def coordinates(self, z: Tensor) -> Tensor:
        """Of places (..., D), (..., K)."""
        return (z - self.origin) @ self.directions.T

    def move(self, z: Tensor, axis: int, value: float) -> Tensor:
        """The place with one coordinate set, (D,)."""
        return z + (value - self.coordinates(z)[axis]) * self.directions[axis]


class Samples(NamedTuple):
    images: Tensor  # (N, C, H, W)
    places: Tensor | None  # (N, D); None for a model without one latent vector or map


@dataclass(frozen=True)
class Explorer:
    """A trained model before example images.

    trained: the same model with the prior of its training, where `lab` has one that was fitted later. label, in all
    methods: the class given to a conditional model, ignored by others.
    """

    lab: Lab
    examples: ExampleImages
    trained: Lab | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # of torch's generators

    @cached_property
    def context(self) -> FigureContext:
        return FigureContext(self.lab.model, self.examples)

    @property
    def has_places(self) -> bool:
        """Whether z is one vector or map of numbers: between codes there is nothing, and layers are not one z."""
        return self.context.has_continuous_latents

    @property
    def num_layers(self) -> int:
        """Stochastic layers that can be resampled; 0 for a model with one."""
        return len(self.lab.model.latents) if isinstance(self.lab.model, LadderVAE) else 0

    @cached_property
    def centres(self) -> Tensor:
        """Posterior centres of the examples, (N, D)."""
        with self._seeded(0):
            return self.context.space.latents.centre

    @cached_property
    def axes(self) -> Axes:
        """The most active dimensions of a vector; of a map, the principal components of the posterior centres."""
        centres, space = self.centres, self.context.space
        if self.context.has_vector:
            dims = space.dims_by_activity[:MAX_AXES]
            names = [latent_name(dim) for dim in dims]
            directions, origin = torch.eye(space.size)[dims], torch.zeros(space.size)
            middle, scale = (values[dims] for values in space.location)
        else:
            directions, origin = principal_directions(centres, MAX_AXES).float(), centres.mean(0)
            names = [f"principal component {k}" for k in range(1, 1 + len(directions))]
            scale = ((centres - origin) @ directions.T).std(0, correction=0)
            scale = torch.where(scale > 0, scale, 1.0)  # of a single image, or equal ones
            middle = torch.zeros(len(directions))
        along = (centres - origin) @ directions.T
        lowest = (middle - REACH * scale).minimum(along.amin(0))
        highest = (middle + REACH * scale).maximum(along.amax(0))
        return Axes(names, directions, origin, lowest, highest)

    # --- places ---

    def decode(self, z: Tensor, label: int = 0) -> Tensor:
        """Mean of p(x|z), (..., C, H, W). z: (..., D); on a sphere, of the point in its direction."""
        latent = self.lab.model.latents[0]
        if latent.kind == "sphere":
            points = z.unflatten(-1, latent.shape)
            z = torch.nn.functional.normalize(points, dim=-len(latent.shape)).flatten(-len(latent.shape))
        return self.context.space.decode(z, self._label(label))

    def encode(self, image: Tensor, label: int = 0) -> Tensor:
        """The place of an image: the centre of q(z|x), (D,)."""
        y = self._label(label)
        space = replace(self.context.space, x=image[None], y=None if y is None else y[None])
        with self._seeded(0):
            return space.latents.centre[0]

    def path(self, ends: Sequence[int], steps: int, kind: Interpolation) -> Tensor:
        """Places from one example to another, (steps, D)."""
        start, end = self.centres[list(ends)].split(1)
        return path_between(start, end, steps, kind, self.lab.model.latents[0])[0]

    @cached_property
    def labels(self) -> list[int]:
        """Classes of which there are examples."""
        return [] if self.examples.labels is None else self.examples.labels.unique().tolist()

    def attribute(self, plus: int, minus: int) -> Tensor:
        """Mean of the examples' centres of one class minus that of another, (D,)."""
        assert self.examples.labels is not None
        more, less = (self.centres[self.examples.labels == label].mean(0) for label in (plus, minus))
        return more - less

    # --- images ---

    def read(self, content: bytes, invert: bool = False) -> Tensor:
        """A picture's file as the model's input, (C, H, W): resized, and binarised as the data.

        What is transparent or beside the picture gets the colour of the examples' borders. invert: light and dark.
        UnreadableImageError: no picture.
        """
        channels, height, width = self.lab.image.shape
        options = PictureOptions((height, width), channels, background=self.background)  # type: ignore[arg-type]
        pixels = torch.tensor(decode(content, options).pixels)[None]
        if invert:
            pixels[:, :3] = 255 - pixels[:, :3]
        binarize = OmegaConf.select(self.lab.config, "data.binarize", default="none")
        if binarize in ("fixed", "dynamic"):
            pixels = binarize_fixed(pixels, seed=0)
        return Preprocess(binarize).evaluate(pixels)[0]

    @cached_property
    def background(self) -> str:
        """Median colour of the examples' borders, #rrggbb."""
        x = self.examples.x[:256, :3]
        border = torch.cat([x[..., 0], x[..., -1], x[..., 0, :], x[..., -1, :]], -1)
        levels = border.movedim(1, -1).flatten(0, -2).median(0).values.mul(255).round().int().tolist()
        return "#" + bytes(levels * (3 // len(levels))).hex()

    def reconstruct(self, image: Tensor, label: int = 0) -> Tensor:
        """The mean image at the centre of the posterior, (C, H, W)."""
        return self.resample(image, (), 1, label=label)[0]

    def resample(
        self,
        image: Tensor,
        layers: Collection[int],
        count: int,
        temperature: float = 1.0,
        seed: int = 0,
        label: int = 0,
    ) -> Tensor:
        """Reconstructions with some layers, from the top down, sampled from the prior, (count, C, H, W)."""
        model = self.lab.model
        x, y = image.expand(count, -1, -1, -1).to(model.device), self._labels(label, count)
        with self._seeded(seed):
            found = (
                model.resample(x, layers, y, temperature) if isinstance(model, LadderVAE) else model.reconstruct(x, y)
            )
            return found.mean.float().cpu()

    def samples(self, count: int, temperature: float = 1.0, seed: int = 0, label: int = 0, prior: str = "") -> Samples:
        """Images decoded from prior samples. prior: "trained", where `lab` has a fitted one.

        ValueError: a prior that cannot be sampled, or not at a temperature.
        """
        lab = self.trained if prior == "trained" and self.trained is not None else self.lab
        y = self._labels(label, count)
        with self._seeded(seed):
            if not self.has_places:
                return Samples(lab.sample(count, temperature, y).float().cpu(), None)
            z = cast(VAE, lab.model).sample_latents(count, y, temperature).flatten(1).float().cpu()
        return Samples(self.decode(z, label), z)

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        with self._lock, evaluation_mode(self.lab.model, seed):
            yield

    def _label(self, label: int) -> Tensor | None:
        return torch.tensor(label) if self.lab.model.conditional else None

    def _labels(self, label: int, count: int) -> Tensor | None:
        y = self._label(label)
        return None if y is None else y.expand(count).to(self.lab.model.device)


def prior_samples(lab: Lab, count: int) -> ExampleImages:
    """Example images for want of data: mean images decoded from the prior, binarised where the data are.

    ValueError: a prior that cannot be sampled.
    """
    labels = torch.arange(count) % lab.image.num_classes if lab.model.conditional else None
    with evaluation_mode(lab.model, 0):
        x = lab.sample(count, labels=None if labels is None else labels.to(lab.model.device)).float().cpu()
        x = torch.bernoulli(x) if lab.image.levels == 2 else x
    return ExampleImages(x.as_subclass(Tensor), labels, tuple(map(str, range(lab.image.num_classes))), "prior-sample")
