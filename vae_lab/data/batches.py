"""Batches as slices of one tensor; their order is a pure function of the seed and the optimiser step.

Every process gets the batches of all, and trains on its share of each (`utils.distributed.Share`).
No length, no worker processes, no state: an iterator starts at the trainer's `global_step`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from vae_lab.data.images import BlockPixels
from vae_lab.utils.rng import block_permutation, epoch_permutation

SECONDS_PER_CALL = 0.1  # long enough to hide the trainer's overhead, short enough to react to Ctrl-C


class Batch(NamedTuple):
    """uint8 images (B, C, H, W), and labels (B,) or None."""

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class ImageSplit:
    """One split: the rows `indices` of the tensor of all images."""

    pixels: Tensor | BlockPixels  # uint8, (N, C, H, W)
    indices: Tensor  # int64, (n,)
    labels: Tensor | None  # int64, (N,)

    def __len__(self) -> int:
        return len(self.indices)

    def order(self, seed: int, epoch: int) -> Tensor:
        """The rows of `pixels` in the order of an epoch, (n,)."""
        if isinstance(self.pixels, Tensor):
            return self.indices[epoch_permutation(len(self), seed, epoch)]
        return self.indices[block_permutation(len(self), self.pixels.block_size, self.pixels.window, seed, epoch)]

    def batch(self, rows: Tensor) -> Batch:
        """The images at these rows of `pixels`."""
        # index_select copies whole images; advanced indexing is several times slower.
        return Batch(self.pixels.index_select(0, rows), None if self.labels is None else self.labels[rows])


@dataclass
class StepsPerCall:
    """Number of optimiser steps in the next call of the trainer.

    steps: a number, or `auto`: as many as take about 0.1 s, measured during training. The weights do not depend on it.
    """

    steps: int | Literal["auto"]
    most: int = 64
    current: int = field(default=1, init=False)
    asked_at: float | None = field(default=None, init=False)

    def next(self) -> int:
        """The number of steps in the next call."""
        if self.steps != "auto":
            return self.steps
        now = time.perf_counter()
        if self.asked_at is not None:
            wanted = self.current * SECONDS_PER_CALL / max(now - self.asked_at, 1e-6)
            self.current = int(min(max(wanted, 1), 2 * self.current, self.most))
        self.asked_at = now
        return self.current


@dataclass(frozen=True)
class TrainingBatches:
    """Iterable over the rest of the current epoch: each item is the list of batches of one call of the trainer.

    step_size: images per optimiser step, of all devices together. clock: returns the index of the next optimiser step.
    boundaries: calls end at every multiple of these step counts (logging, pictures, checkpoints). last_step: no call
    continues past it. repeat: every epoch has the batches of the first.
    """

    split: ImageSplit
    step_size: int
    steps_per_epoch: int
    seed: int
    steps_per_call: StepsPerCall
    clock: Callable[[], int]
    boundaries: Sequence[int] = ()
    last_step: int | None = None
    repeat: bool = False

    def __iter__(self) -> Iterator[list[Batch]]:
        self.steps_per_call.asked_at = None  # so that a validation in between is not timed as a slow step
        epoch, at = divmod(self.clock(), self.steps_per_epoch)
        rows = self._rows(epoch)
        while at < self.steps_per_epoch:
            end = self._end_of_call(epoch * self.steps_per_epoch, at)
            if end == at:
                return
            yield self._batches(rows, at, end)
            at = end

    def step(self, number: int) -> Batch:
        """The batch of any optimiser step."""
        epoch, at = divmod(number, self.steps_per_epoch)
        (batch,) = self._batches(self._rows(epoch), at, at + 1)
        return batch

    def _rows(self, epoch: int) -> Tensor:
        """The rows in the order of the epoch."""
        return self.split.order(self.seed, 0 if self.repeat else epoch)

    def _batches(self, rows: Tensor, start: int, end: int) -> list[Batch]:
        """The batches of steps start, ..., end - 1: gathered at once, then sliced."""
        images, labels = self.split.batch(rows[start * self.step_size : end * self.step_size])
        parts = images.split(self.step_size)
        names = [None] * len(parts) if labels is None else labels.split(self.step_size)
        return [Batch(x, y) for x, y in zip(parts, names, strict=True)]

    def _end_of_call(self, epoch_start: int, at: int) -> int:
        step = epoch_start + at
        ends = [step + self.steps_per_call.next(), epoch_start + self.steps_per_epoch]
        ends += [step - step % every + every for every in self.boundaries]
        if self.last_step is not None:
            ends.append(max(step, self.last_step))
        return min(ends) - epoch_start


@dataclass(frozen=True)
class EvaluationBatches:
    """A split in order, each image once."""

    split: ImageSplit
    batch_size: int

    def __len__(self) -> int:
        return math.ceil(len(self.split) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.split.indices.split(self.batch_size):
            if len(rows):
                yield self.split.batch(rows)


def steps_per_epoch(num_images: int, step_size: int, limit: int | float | None) -> int:
    """Steps of `step_size` images per epoch; limit: their maximum, or a fraction (Lightning's limit_train_batches)."""
    steps = math.ceil(num_images / step_size)
    if limit is None:
        return steps
    return max(1, min(steps, limit if isinstance(limit, int) else int(steps * limit)))
