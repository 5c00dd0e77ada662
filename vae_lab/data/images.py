"""What a data set is to the rest of the package: one uint8 tensor, its labels and its splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

Split = Literal["train", "val", "test"]


class DecodedImages(NamedTuple):
    """A decoded data set."""

    pixels: Tensor  # uint8, (N, C, H, W); in memory or memory-mapped
    splits: Mapping[Split, Tensor]  # int64 indices into pixels; a split may be empty
    labels: Tensor | None = None  # int64, (N,)
    class_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()  # files left out because they could not be read


class ImageSource(Protocol):
    """Where images come from. Raises UsageError when they are missing or broken."""

    def load(self) -> DecodedImages:
        """Every image, decoded once."""
        ...
