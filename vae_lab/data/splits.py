"""Deterministic train, val and test splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_lab.data.images import Split
from vae_lab.utils.errors import UsageError

_SIZE_KEYS = ("data.val_size", "data.test_size")


def split_by_count(num_images: int, val_size: int, test_size: int) -> dict[Split, Tensor]:
    """Int64 indices of each split, contiguous and in the order train, val, test.

    `val_size` and `test_size` count images and may be 0. Raises UsageError if they are not counts or leave
    no image to train on.
    """
    for key, size in zip(_SIZE_KEYS, (val_size, test_size), strict=True):
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise UsageError(f"{key}={size}: expected a number of images, 0 or more.")
    num_train = num_images - val_size - test_size
    if num_train < 1:
        raise UsageError(
            f"data.val_size={val_size} and data.test_size={test_size} leave no image to train on: "
            f"there are {num_images} images.\nExpected their sum to be below {num_images}; make one smaller."
        )
    indices, held_out = torch.arange(num_images), num_train + val_size
    return {"train": indices[:num_train], "val": indices[num_train:held_out], "test": indices[held_out:]}


def split_by_hash(names: Sequence[str], val_size: float, test_size: float) -> dict[Split, Tensor]:
    """Int64 indices of each split, assigned by the SHA-256 of each relative posix file name.

    `val_size` and `test_size` are fractions, met on average. A picture's split depends on its own name only,
    so adding a picture moves no other. Raises UsageError if the sizes are not fractions or the hash leaves no
    image to train on; an empty val or test split is allowed.
    """
    check_fractions(val_size, test_size)
    position = torch.tensor([_position(name) for name in names], dtype=torch.float64)
    test = position < test_size
    val = ~test & (position < test_size + val_size)
    train = ~test & ~val
    if not train.any():
        raise UsageError(
            f"data.val_size={val_size} and data.test_size={test_size} leave no image to train on: "
            f"there are {len(names)} images, split by a hash of their names.\n"
            "Expected at least one; add pictures, or set data.val_size=0 data.test_size=0."
        )
    return {"train": _where(train), "val": _where(val), "test": _where(test)}


def check_fractions(val_size: float, test_size: float) -> None:
    """Raise UsageError unless both are in [0, 1) and their sum is below 1."""
    for key, size in zip(_SIZE_KEYS, (val_size, test_size), strict=True):
        if isinstance(size, bool) or not 0 <= size < 1:
            raise UsageError(f"{key}={size}: expected a fraction of the pictures, at least 0 and below 1.")
    if val_size + test_size >= 1:
        raise UsageError(
            f"data.val_size={val_size} and data.test_size={test_size} leave no picture to train on: "
            "expected their sum to be below 1."
        )


def _position(name: str) -> float:
    """Hash of the name, uniform in [0, 1)."""
    # surrogateescape: file names need not be valid UTF-8. 53 bits fit a float exactly, so no value rounds to 1.
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def _where(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)
