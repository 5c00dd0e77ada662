"""The context of a training run's pictures: its evaluated model, and images of the first split that has any."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from vae_lab.core import LatentSpec
from vae_lab.data.datamodule import ImageDataModule, datamodule_of
from vae_lab.figures.context import ExampleImages, FigureContext, FigureSizes, evaluation_mode
from vae_lab.figures.requirements import require_available
from vae_lab.models.base import Model
from vae_lab.training.lightning_module import VAEModule

SPLITS: tuple[Literal["test", "val", "train"], ...] = ("test", "val", "train")
MAX_VALUES = 2**25  # pixels times channels of the example images: 128 MiB
MAX_COORDINATES = 2**22  # images times latent dimensions: their principal components take seconds


@contextmanager
def figure_context(
    trainer: Trainer, pl_module: VAEModule, sizes: FigureSizes, when: str, num_examples: int
) -> Iterator[FigureContext]:
    """The model in evaluation mode with example images; modes and random state are restored on exit."""
    wanted = max(num_examples, sizes.num_images)
    examples = _examples(datamodule_of(trainer), wanted, pl_module.evaluation_model.latents)
    model, device = pl_module.evaluation_model, _device_of(pl_module.evaluation_model)
    with evaluation_mode(model, device, sizes.seed):
        yield FigureContext(model, device, examples, sizes, when, pl_module.kl_per_dim, _corruption(pl_module))


def require_pictures(pl_module: VAEModule, sizes: FigureSizes, pictures: Sequence[str]) -> None:
    """Raise UsageError for a picture that is not available for this model."""
    model = pl_module.evaluation_model
    device, nothing = _device_of(model), ExampleImages(torch.zeros(0))
    with evaluation_mode(model, device, sizes.seed):
        require_available(FigureContext(model, device, nothing, sizes, corrupted=_corruption(pl_module)), pictures)


def _device_of(model: Model) -> torch.device:
    """Where the weights are; while a trainer is set up, Lightning's `module.device` already names the GPU."""
    return next(model.parameters()).device


def _corruption(pl_module: VAEModule) -> Callable[[Tensor], Tensor] | None:
    """The corruption of the encoder's images in training; None if there is none."""
    return None if pl_module.preprocess.corruption is None else pl_module.preprocess.corrupt


def _examples(data: ImageDataModule, wanted: int, latents: Sequence[LatentSpec]) -> ExampleImages:
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
