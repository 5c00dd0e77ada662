"""The interface of a data set: one uint8 tensor, its labels and its splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

Split = Literal["train", "val", "test"]


class DecodedImages(NamedTuple):
    pixels: Tensor  # uint8, (N, C, H, W); in memory or memory-mapped
    splits: Mapping[Split, Tensor]  # int64 indices into pixels; a split may be empty
    labels: Tensor | None = None  # int64, (N,)
    class_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()  # files that could not be read


class ImageSource(Protocol):
    """Loads a data set. Raises UsageError if images are missing or damaged."""

    def load(self) -> DecodedImages:
        """Decode all images."""
        ...
