"""What every part of an evaluation has: the model, the images, the noise; and the rows it fills."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_lab.data.datamodule import ImageDataModule
from vae_lab.data.images import Split
from vae_lab.models.base import Model
from vae_lab.utils.callables import Track, untracked
from vae_lab.utils.distributed import ONE_PROCESS, Share
from vae_lab.utils.rng import FIT, seed_noise

BLOCK = 100  # images with one seed: results do not depend on any batch size


class Row(NamedTuple):
    """One number of the table: its standard error and protocol, or the reason why it is left out."""

    name: str
    value: float | None
    stderr: float | None = None
    protocol: dict[str, Any] = {}  # noqa: RUF012 - never changed
    reason: str = ""


def mean_row(name: str, values: Tensor, **protocol: Any) -> Row:
    """The mean over images and its standard error. values: one for each image, (N,)."""
    values = values.double()
    stderr = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else None
    return Row(name, float(values.mean()), stderr, {"images": len(values), **protocol})


def left_out(reason: str, *names: str) -> Iterator[Row]:
    """Rows that could not be filled."""
    for name in names:
        yield Row(name, None, reason=reason)


@dataclass
class Subject:
    """A model in evaluation mode on a device, the data that were set up for it, and the split to evaluate.

    per_image: arrays (N,) by the names of their rows, for users to analyse.
    """

    model: Model
    data: ImageDataModule
    device: torch.device
    split: Split = "test"
    seed: int = 0
    track: Track = untracked
    share: Share = ONE_PROCESS
    per_image: dict[str, Tensor] = field(default_factory=dict)
    nearest: tuple[Tensor, Tensor] | None = None  # samples and their nearest training images, (n, C, H, W) each

    def blocks(
        self,
        num_images: int | None,
        what: str,
        split: Split | None = None,
        size: int = BLOCK,
        share: Share = ONE_PROCESS,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The first images of a split, `size` at a time, each block with its own seed: x (B, C, H, W), labels (B,).

        Results may depend on `size`, never on the batch size of the data. share: of the blocks, for `all_blocks`.
        """
        split = split or self.split
        total = min(num_images or self.data.size(split), self.data.size(split))
        numbers = range(math.ceil(total / size))[share.rank :: share.world_size]
        own = islice(self._images(split, total, size), share.rank, None, share.world_size)
        for number, block in zip(numbers, self.track(own, what, len(numbers)), strict=True):
            seed_noise(self.device, self.seed, FIT, *what.encode(), number)
            yield block

    def _images(self, split: Split, total: int, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Blocks of equal size, whatever the size of the batches of the data."""
        rest, labels = torch.empty(0), torch.empty(0, dtype=torch.int64)
        for x, y in self.data.first_images(split, total):
            rest = torch.cat((rest, x)) if len(rest) else x
            labels = labels if y is None else torch.cat((labels, y))
            while len(rest) >= size:
                yield self._on_device(rest[:size], None if y is None else labels[:size])
                rest, labels = rest[size:], labels[size:]
        if len(rest):
            yield self._on_device(rest, labels if len(labels) else None)

    def _on_device(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return x.to(self.device), None if y is None else y.to(self.device)

    def labels(self, y: Tensor | None) -> Tensor | None:
        """The labels, for a conditional model only."""
        return y if self.model.conditional else None
