"""What a data set is to the rest of the package: one uint8 tensor, its labels and its splits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class ImageSpec:
    """The shape and kind of one image; every size in a model is derived from it.

    `levels` is the number of values a pixel takes: 2 once binarised, 256 for grey or colour.
    """

    channels: int
    height: int
    width: int
    levels: int = 256
    num_classes: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def num_dims(self) -> int:
        """Pixels times channels, the D of bits per dimension."""
        return math.prod(self.shape)


class Images(NamedTuple):
    """A decoded data set."""

    pixels: Tensor  # uint8, (N, C, H, W); in memory or memory-mapped
    splits: Mapping[Split, Tensor]  # int64 indices into pixels; a split may be empty
    labels: Tensor | None = None  # int64, (N,)
    class_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()  # files left out because they could not be read


class ImageSource(Protocol):
    """Where images come from. Raises UsageError when they are missing or broken."""

    def load(self) -> Images:
        """Every image, decoded once."""
        ...
