"""What a picture of a training run is drawn from: its evaluated model, and images of the first split that has any."""

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
MAX_VALUES = 2**25  # pixels times channels held for the scatter: 128 MiB
MAX_COORDINATES = 2**22  # of latents: their principal components are found in seconds


class EvaluatedModule(Protocol):
    """What the pictures ask of an experiment."""

    evaluation_model: Model
    kl_per_dim: Tensor | None  # (D,), of the last validation

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        ...


class ExampleSource(Protocol):
    """What they ask of the data."""

    class_names: tuple[str, ...]

    def example_images(self, split: Literal["train", "val", "test"], n: int, /) -> tuple[Tensor, Tensor | None]:
        """At most n images in [0, 1] and their labels."""
        ...


@contextmanager
def figure_context(
    trainer: Trainer, pl_module: LightningModule, sizes: FigureSizes, when: str
) -> Iterator[FigureContext]:
    """The model as it is now, with images to look at it with; training goes on as if nobody had looked."""
    shown = cast(EvaluatedModule, pl_module)
    examples = _examples(cast(ExampleSource, cast(Any, trainer).datamodule), sizes, shown.evaluation_model.latents)
    with evaluation_mode(shown.evaluation_model, shown.device, sizes.seed):
        corrupted = _corruption(pl_module)
        yield FigureContext(shown.evaluation_model, shown.device, examples, sizes, when, shown.kl_per_dim, corrupted)


def require_pictures(pl_module: LightningModule, sizes: FigureSizes, pictures: Sequence[str]) -> None:
    """UsageError for one that there cannot be of this model."""
    shown = cast(EvaluatedModule, pl_module)
    with evaluation_mode(shown.evaluation_model, shown.device, sizes.seed):
        context = FigureContext(
            shown.evaluation_model, shown.device, ExampleImages(torch.zeros(0)), sizes, corrupted=_corruption(pl_module)
        )
        require_available(context, pictures)


def _corruption(pl_module: LightningModule) -> Callable[[Tensor], Tensor] | None:
    """What the encoder's images go through in training; None where it sees them as they are."""
    preprocess: Preprocess | None = getattr(pl_module, "preprocess", None)
    return None if preprocess is None or preprocess.corruption is None else preprocess.corrupt


def _examples(data: ExampleSource, sizes: FigureSizes, latents: Sequence[LatentSpec]) -> ExampleImages:
    """From the first split that has any, no more than fit in memory."""
    wanted = max(sizes.num_scatter, sizes.num_images)
    for split in SPLITS:
        first, _ = data.example_images(split, 1)
        if len(first):
            x, labels = data.example_images(
                split, max(1, min(wanted, MAX_VALUES // first.numel(), _max_points(latents)))
            )
            return ExampleImages(x.cpu(), None if labels is None else labels.cpu(), data.class_names, split)
    return ExampleImages(first)


def _max_points(latents: Sequence[LatentSpec]) -> int:
    """The number of images whose latents are few enough to be looked at together."""
    kept = len(latents) == 1 and latents[0].kind != "codes"  # others are counted or averaged
    return MAX_COORDINATES // math.prod(latents[0].shape) if kept else MAX_COORDINATES
