"""The context of a training run's pictures: its evaluated model, and images of the first split that has any."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from vae_lab.core import LatentSpec
from vae_lab.data.transforms import Preprocess
from vae_lab.figures.context import FigureContext
from vae_lab.figures.examples import ExampleImages, evaluation_mode
from vae_lab.figures.requirements import require_available
from vae_lab.figures.sizes import FigureSizes
from vae_lab.models.base import Model

SPLITS: tuple[Literal["test", "val", "train"], ...] = ("test", "val", "train")
MAX_VALUES = 2**25  # pixels times channels of the example images: 128 MiB
MAX_COORDINATES = 2**22  # images times latent dimensions: their principal components take seconds


class EvaluatedModule(Protocol):
    """What pictures need of the LightningModule."""

    evaluation_model: Model
    kl_per_dim: Tensor | None  # (D,), of the last validation


class ExampleSource(Protocol):
    """What pictures need of the data module."""

    class_names: tuple[str, ...]

    def example_images(self, split: Literal["train", "val", "test"], n: int, /) -> tuple[Tensor, Tensor | None]:
        """At most n images in [0, 1] and their labels."""
        ...


@contextmanager
def figure_context(
    trainer: Trainer, pl_module: LightningModule, sizes: FigureSizes, when: str, num_examples: int
) -> Iterator[FigureContext]:
    """The model in evaluation mode with example images; modes and random state are restored on exit."""
    shown = cast(EvaluatedModule, pl_module)
    wanted = max(num_examples, sizes.num_images)
    examples = _examples(cast(ExampleSource, cast(Any, trainer).datamodule), wanted, shown.evaluation_model.latents)
    model, device = shown.evaluation_model, _device_of(shown.evaluation_model)
    with evaluation_mode(model, device, sizes.seed):
        yield FigureContext(model, device, examples, sizes, when, shown.kl_per_dim, _corruption(pl_module))


def require_pictures(pl_module: LightningModule, sizes: FigureSizes, pictures: Sequence[str]) -> None:
    """Raise UsageError for a picture that is not available for this model."""
    model = cast(EvaluatedModule, pl_module).evaluation_model
    device, nothing = _device_of(model), ExampleImages(torch.zeros(0))
    with evaluation_mode(model, device, sizes.seed):
        require_available(FigureContext(model, device, nothing, sizes, corrupted=_corruption(pl_module)), pictures)


def _device_of(model: Model) -> torch.device:
    """Where the weights are; while a trainer is set up, Lightning's `module.device` already names the GPU."""
    return next(model.parameters()).device


def _corruption(pl_module: LightningModule) -> Callable[[Tensor], Tensor] | None:
    """The corruption of the encoder's images in training; None if there is none."""
    preprocess: Preprocess | None = getattr(pl_module, "preprocess", None)
    return None if preprocess is None or preprocess.corruption is None else preprocess.corrupt


def _examples(data: ExampleSource, wanted: int, latents: Sequence[LatentSpec]) -> ExampleImages:
    """Images of the first split that has any, bounded by MAX_VALUES and MAX_COORDINATES."""
    for split in SPLITS:
        first, _ = data.example_images(split, 1)
        if len(first):
            x, labels = data.example_images(
                split, max(1, min(wanted, MAX_VALUES // first.numel(), _max_points(latents)))
            )
            return ExampleImages(x.cpu(), None if labels is None else labels.cpu(), data.class_names, split)
    return ExampleImages(first)


def _max_points(latents: Sequence[LatentSpec]) -> int:
    """The number of images whose latents together have at most MAX_COORDINATES coordinates."""
    kept = len(latents) == 1 and latents[0].kind != "codes"  # other latents are counted or averaged, not held
    return MAX_COORDINATES // math.prod(latents[0].shape) if kept else MAX_COORDINATES
