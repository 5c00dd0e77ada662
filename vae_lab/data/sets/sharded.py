"""Images larger than memory, read block by block from shards that `vae_lab.data.shards` has written."""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from vae_lab.data.datamodule import BatchOptions, ImageDataModule
from vae_lab.data.images import DecodedImages, consecutive
from vae_lab.data.shards import DESCRIPTION, LABELS, Description
from vae_lab.utils.errors import UsageError, require_extra


def streaming(
    folder: str, window: int = 64, root: str | None = None, **options: Unpack[BatchOptions]
) -> ImageDataModule:
    """The shards in `folder`. window: number of blocks, of about 1 MB each, whose images are shuffled together.

    Raises UsageError: no shards, litdata is missing, or an option that needs all images at once.
    """
    if options.get("binarize") == "fixed":
        raise UsageError("data.binarize=fixed keeps every binarised image: data=streaming takes dynamic or threshold")
    if options.get("device_resident") is True:
        raise UsageError("data.device_resident=true: data=streaming does not hold the images in memory")
    if window < 1:
        raise UsageError(f"data.window={window}: expected at least 1 block")

    def load() -> DecodedImages:
        path = Path(folder).expanduser().absolute()
        try:
            described = Description(**json.loads((path / DESCRIPTION).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(
                f"data.folder={folder}: no shards in {path} ({DESCRIPTION} is missing or damaged)\n"
                f"write them: python -m vae_lab.data.shards PICTURES {folder} image_size=64"
            ) from error
        labels = torch.from_numpy(np.load(path / LABELS)) if (path / LABELS).exists() else None
        pixels = ShardedPixels(path, described, window)
        names, skipped = tuple(described.class_names), tuple(described.skipped)
        return DecodedImages(pixels, consecutive(described.sizes), labels, names, skipped)

    return ImageDataModule(load, **options)


class ShardedPixels:
    """What the data module asks of the tensor of all images, (N, C, H, W) uint8: blocks are read when they are needed.

    The last blocks stay in memory: those of two windows, about 2 MB for each block of a window.
    """

    def __init__(self, folder: Path, described: Description, window: int) -> None:
        require_extra("streaming", "litdata", where="data=streaming")
        from litdata import StreamingDataset

        self.shape = torch.Size((sum(described.sizes), *described.shape))
        self.block_size, self.window, self.checksum = described.block_size, window, described.checksum
        self._items = StreamingDataset(str(folder), shuffle=False)
        self._block = functools.lru_cache(2 * window)(self._read)

    def _read(self, number: int) -> Tensor:
        """A copy of a block: litdata's tensor is a read-only view of a chunk that it may close."""
        with warnings.catch_warnings(action="ignore"):
            block: Tensor = self._items[number]
            return block.clone()

    @property
    def nbytes(self) -> int:
        return self.shape.numel()

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The images at these rows, (len(index), C, H, W). dim: 0."""
        images = torch.empty((len(index), *self.shape[1:]), dtype=torch.uint8)
        numbers, order = (index // self.block_size).sort()
        found, counts = numbers.unique_consecutive(return_counts=True)
        for number, places in zip(found.tolist(), order.split(counts.tolist()), strict=True):
            images[places] = self._block(number).index_select(dim, index[places] % self.block_size)
        return images
