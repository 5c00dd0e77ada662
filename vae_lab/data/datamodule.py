"""ImageDataModule: the Lightning data module of a data set, and helpers for the trainer."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypedDict

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from vae_lab.core import ImageSpec
from vae_lab.data.batches import EvaluationBatches, ImageSplit, StepsPerCall, TrainingBatches, steps_per_epoch
from vae_lab.data.images import SPLITS, DecodedImages, Split
from vae_lab.data.transforms import Binarize, Corruption, Preprocess, binarize_fixed
from vae_lab.utils.distributed import Share
from vae_lab.utils.errors import UsageError
from vae_lab.utils.rng import BINARIZE, mix

RESIDENT_SHARE = 0.25  # maximum fraction of the device's free memory for images under `auto`


class BatchOptions(TypedDict, total=False):
    """Options common to all data sets, as `data.<name>`; documented in `ImageDataModule`."""

    batch_size: int
    eval_batch_size: int
    binarize: Binarize
    binarize_seed: int
    flip: bool
    shift: int
    zoom: float
    hue: float
    corruption: Corruption | None
    device_resident: bool | Literal["auto"]


@dataclass
class LoaderOptions:
    """Training options that determine batches and steps."""

    seed: int = 0
    accumulate: int = 1
    steps_per_execution: int | Literal["auto"] = "auto"
    limit_steps: int | float | None = None
    repeat: bool = False  # the batches of the first epoch in all epochs


class ImageDataModule(LightningDataModule):
    """Batches of the images of a data set.

    source: loads the images, at the first `load()` or `setup()`.
    batch_size: training images per batch on each device. eval_batch_size: images per batch of validation and test.
    binarize, flip, shift, zoom, hue, corruption: see `Preprocess`. binarize_seed: seed of the pixels sampled under
    `fixed`, and of validation and test under `dynamic`. device_resident: keep the training images on the accelerator
    (`auto`: if they fit in a quarter of its free memory).
    """

    def __init__(
        self,
        source: Callable[[], DecodedImages],
        batch_size: int = 128,
        eval_batch_size: int = 500,
        binarize: Binarize = "none",
        binarize_seed: int = 0,
        flip: bool = False,
        shift: int = 0,
        zoom: float = 0.0,
        hue: float = 0.0,
        corruption: Corruption | None = None,
        device_resident: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise ValueError(f"data.{name} is a number of images, at least 1; found {size}")
        self.source = source
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.preprocess = Preprocess(binarize, flip, shift, zoom, hue, corruption)
        self.binarize_seed, self.device_resident = binarize_seed, device_resident
        self._training = LoaderOptions()
        self._loaded: DecodedImages | None = None
        self._splits: dict[Split, ImageSplit] = {}

    def configure(self, training: LoaderOptions) -> None:
        """Set what the training run determines, before the first batch."""
        self._training = training

    def load(self) -> DecodedImages:
        """Decode all images on the first call; the result is kept for the life of the process."""
        if self._loaded is None:
            self._loaded = self.source()
        return self._loaded

    @property
    def images(self) -> DecodedImages:
        """The images, once loaded."""
        assert self._loaded is not None, "call load() or setup() first"
        return self._loaded

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of the pixels (a regular selection of 256 MB if there are more), their number and their labels."""
        pixels, labels = self.images.pixels, self.images.labels
        if not isinstance(pixels, Tensor):
            return pixels.checksum
        found = zlib.crc32(pixels[:: math.ceil(pixels.nbytes / 2**28) or 1].contiguous().numpy().data)
        found = zlib.crc32(repr(tuple(pixels.shape)).encode(), found)
        return found if labels is None else zlib.crc32(labels.contiguous().numpy().data, found)

    @property
    def image(self) -> ImageSpec:
        """Shape, levels per pixel and number of classes of the images."""
        channels, height, width = self.images.pixels.shape[1:]
        levels = 256 if self.preprocess.binarize == "none" else 2
        return ImageSpec(channels, height, width, levels, len(self.class_names))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty without labels."""
        return self.images.class_names

    def size(self, split: Split) -> int:
        """Number of images in the split."""
        return len(self.images.splits[split])

    def setup(self, stage: str | None = None) -> None:
        """Load the images and sample the fixed binarisation. Raises UsageError."""
        self.load()
        num_devices = self._num_processes
        for split in SPLITS:
            if split not in self._splits:
                self._splits[split] = self._prepare_split(split)
            if 0 < self.size(split) < num_devices:
                raise UsageError(
                    f"{split}: {self.size(split)} images for {num_devices} devices; "
                    f"use fewer devices or another data.{split}_size".replace("train_size", "val_size")
                )
        if self.trainer is not None and stage == "fit":
            self._splits["train"] = self._move_to_device(self._splits["train"], self.trainer.strategy.root_device)

    def _prepare_split(self, split: Split) -> ImageSplit:
        images = self.images
        part = ImageSplit(images.pixels, images.splits[split], images.labels)
        binarized_splits = {"fixed": SPLITS, "dynamic": SPLITS[1:]}.get(self.preprocess.binarize, ())
        if split not in binarized_splits or not len(part):
            return part
        chosen = part.batch(part.indices)
        pixels = binarize_fixed(chosen.images, mix(self.binarize_seed, BINARIZE, SPLITS.index(split)))
        return ImageSplit(pixels, torch.arange(len(part)), chosen.labels)

    def _move_to_device(self, split: ImageSplit, device: torch.device) -> ImageSplit:
        """Move the split to the accelerator if `device_resident` is true, or `auto` and it fits."""
        if device.type != "cuda" or self.device_resident is False or not isinstance(split.pixels, Tensor):
            return split
        fits = split.pixels.nbytes < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
        if self.device_resident == "auto" and not fits:
            return split
        labels = None if split.labels is None else split.labels.to(device)
        return replace(split, pixels=split.pixels.to(device), indices=split.indices.to(device), labels=labels)

    @property
    def _num_processes(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    @property
    def step_size(self) -> int:
        """Images per optimiser step, of all processes together."""
        return self.batch_size * self._training.accumulate * self._num_processes

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.size("train"), self.step_size, self._training.limit_steps)

    def train_dataloader(self) -> TrainingBatches:
        """The remaining batches of the epoch that contains `trainer.global_step`."""
        trainer: Any = self.trainer
        # All devices need the same number of steps per call, so it cannot follow their own timings.
        steps = self._training.steps_per_execution
        steps = 8 if steps == "auto" and trainer.world_size > 1 else steps
        return TrainingBatches(
            split=self._splits["train"],
            step_size=self.step_size,
            steps_per_epoch=self.steps_per_epoch,
            seed=self._training.seed,
            steps_per_call=StepsPerCall(1 if trainer.fast_dev_run else steps),
            clock=lambda: trainer.global_step,
            boundaries=call_boundaries(trainer),
            last_step=final_step(trainer, self.steps_per_epoch),
            repeat=self._training.repeat,
        )

    def val_dataloader(self) -> EvaluationBatches | list[Any]:
        return self._evaluation("val")

    def test_dataloader(self) -> EvaluationBatches | list[Any]:
        return self._evaluation("test")

    def _evaluation(self, split: Split) -> EvaluationBatches | list[Any]:
        """Batches of the split in order; an empty list if it is empty."""
        part = self._splits[split]
        return EvaluationBatches(part, self.eval_batch_size) if len(part) else []

    def first_images(self, split: Split, num_images: int | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Batches of the first images of a split (None: all), preprocessed as for evaluation, alike in every process.

        x (B, C, H, W), labels (B,) or None.
        """
        part = self._splits[split]
        dynamic = split == "train" and self.preprocess.binarize == "dynamic"
        for number, rows in enumerate(part.indices[:num_images].split(self.eval_batch_size)):
            images, labels = part.batch(rows)
            if dynamic:
                seed = mix(self.binarize_seed, BINARIZE, SPLITS.index(split), number)
                images = binarize_fixed(images.cpu(), seed).to(images.device)
            yield self.preprocess.evaluate(images), labels

    def example_images(self, split: Split, num_images: int) -> tuple[Tensor, Tensor | None]:
        """The first images of a split, preprocessed as for evaluation: x (n, C, H, W), labels (n,) or None; on CPU."""
        self.setup()
        part = self._splits[split]
        images, labels = part.batch(part.indices[:num_images])
        return self.preprocess.evaluate(images).cpu(), None if labels is None else labels.cpu()


def final_step(trainer: Any, steps_per_epoch: int) -> int | None:
    """Optimiser step at which training ends; None if only time or a callback ends it."""
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    if (trainer.max_epochs or 0) > 0:
        limits.append(trainer.max_epochs * steps_per_epoch)
    return min(limits, default=None)


def datamodule_of(trainer: Trainer) -> ImageDataModule:
    """The data module attached to the trainer."""
    data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning at run time
    return data


def share_of(trainer: Trainer) -> Share:
    """The share of this process in every batch."""
    return Share(trainer.global_rank, trainer.world_size)


def has_validation(trainer: Trainer, data: ImageDataModule | None = None) -> bool:
    """Whether there are validation batches; data: required before it is attached to the trainer."""
    return (data or datamodule_of(trainer)).size("val") > 0 and trainer.limit_val_batches != 0


def is_within_epoch(trainer: Trainer) -> bool:
    """Whether the epoch of the last step has steps left."""
    return trainer.global_step % datamodule_of(trainer).steps_per_epoch != 0


def call_boundaries(trainer: Any) -> Sequence[int]:
    """Intervals in steps at which values are logged, pictures made or checkpoints saved."""
    names = ("every_n_steps", "_every_n_train_steps")  # our callbacks, Lightning's ModelCheckpoint
    intervals = [getattr(callback, name, None) for callback in trainer.callbacks for name in names]
    return [n for n in {trainer.log_every_n_steps, *intervals} if n]
