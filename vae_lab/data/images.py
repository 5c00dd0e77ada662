"""A data set as one uint8 tensor, its labels and its deterministic splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from vae_lab.utils.errors import UsageError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
DIGIT_NAMES = tuple("0123456789")


class Factors(NamedTuple):
    """The known factors of variation of each image."""

    values: Tensor  # int64, (N, F)
    names: tuple[str, ...]  # F
    categorical: tuple[bool, ...]  # F: whether the values of a factor have no order


class BlockPixels(Protocol):
    """Images (N, C, H, W), uint8, stored in blocks that are read when they are needed."""

    shape: torch.Size
    block_size: int  # images of a block
    window: int  # blocks whose images are shuffled together
    checksum: int

    @property
    def nbytes(self) -> int: ...

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The images at these rows, in memory."""


class DecodedImages(NamedTuple):
    pixels: Tensor | BlockPixels  # uint8, (N, C, H, W); in memory, memory-mapped or in blocks
    splits: Mapping[Split, Tensor]  # int64 indices into pixels; a split may be empty
    labels: Tensor | None = None  # int64, (N,)
    class_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()  # files that could not be read; no split has their rows
    factors: Factors | None = None
    warnings: tuple[str, ...] = ()  # what a user would not expect of how the images were read


def split_by_count(num_images: int, val_size: int, test_size: int) -> dict[Split, Tensor]:
    """Int64 indices of each split, contiguous and in the order train, val, test.

    `val_size` and `test_size` count images and may be 0. Raises UsageError if they leave no image to train on.
    """
    for key, size in (("val", val_size), ("test", test_size)):
        if size < 0:
            raise UsageError(f"data.{key}_size={size}: expected a number of images, 0 or more.")
    if val_size + test_size >= num_images:
        raise UsageError(
            f"data.val_size={val_size} and data.test_size={test_size} leave no image to train on: "
            f"there are {num_images} images.\nExpected their sum to be below {num_images}; make one smaller."
        )
    return consecutive([num_images - val_size - test_size, val_size, test_size])


def split_at_random(num_images: int, val_size: int, test_size: int) -> dict[Split, Tensor]:
    """As `split_by_count`, of the images in a random order that is the same in every run."""
    # RandomState, because numpy guarantees that its stream never changes.
    order = torch.from_numpy(np.random.RandomState(0).permutation(num_images))
    return {split: order[rows] for split, rows in split_by_count(num_images, val_size, test_size).items()}


def complete_splits(given: Mapping[Split, Tensor], val_size: float, test_size: float) -> dict[Split, Tensor]:
    """The splits of a data set that brings some: val or test is taken from its training images at random if empty.

    val_size, test_size: a number of images, or a fraction below 1 of the training images. Raises UsageError.
    """
    train = given["train"]
    counts = [round(size * len(train)) if 0 < size < 1 else int(size) for size in (val_size, test_size)]
    val, test = (given.get(split, train[:0]) for split in SPLITS[1:])
    parts = split_at_random(len(train), 0 if len(val) else counts[0], 0 if len(test) else counts[1])
    val, test = torch.cat([val, train[parts["val"]]]), torch.cat([test, train[parts["test"]]])
    return {"train": train[parts["train"]], "val": val, "test": test}


def consecutive(sizes: Sequence[int]) -> dict[Split, Tensor]:
    """Int64 indices of train, val and test that stand one after the other."""
    return dict(zip(SPLITS, torch.arange(sum(sizes)).split(list(sizes)), strict=True))


def split_by_hash(names: Sequence[str], val_size: float, test_size: float) -> dict[Split, Tensor]:
    """Int64 indices of each split, assigned by the SHA-256 of each relative posix file name.

    `val_size` and `test_size` are fractions, met on average. A picture's split depends on its own name only,
    so adding a picture moves no other. Raises UsageError if the sizes are not fractions or the hash leaves no
    image to train on; an empty val or test split is allowed.
    """
    for key, size in (("val", val_size), ("test", test_size)):
        if not 0 <= size < 1:
            raise UsageError(f"data.{key}_size={size}: expected a fraction of the pictures, at least 0 and below 1.")
    position = torch.tensor([_position(name) for name in names], dtype=torch.float64)
    test, held_out = position < test_size, position < test_size + val_size
    if held_out.all():
        raise UsageError(
            f"data.val_size={val_size} and data.test_size={test_size} leave no image to train on: "
            f"there are {len(names)} images, split by a hash of their names.\n"
            "Expected at least one; add pictures, or set data.val_size=0 data.test_size=0."
        )
    masks = (~held_out, held_out & ~test, test)
    return {split: mask.nonzero().squeeze(1) for split, mask in zip(SPLITS, masks, strict=True)}


def _position(name: str) -> float:
    """Hash of the name, uniform in [0, 1)."""
    # surrogateescape: file names need not be valid UTF-8. 53 bits fit a float exactly, so no value rounds to 1.
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
