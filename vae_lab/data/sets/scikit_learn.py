"""The handwritten digits bundled with scikit-learn: no download, read in milliseconds."""

from __future__ import annotations

from importlib.metadata import distribution
from typing import Unpack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vae_lab.data.datamodule import BatchOptions, ImageDataModule
from vae_lab.data.images import DecodedImages, split_at_random
from vae_lab.utils.errors import UsageError

_SIDE = 8


def digits(
    image_size: int = 28, val_size: int = 180, test_size: int = 180, **options: Unpack[BatchOptions]
) -> ImageDataModule:
    """1,797 grey digits with labels 0 to 9; `val_size` and `test_size` count images.

    The 8x8 originals are upsampled to `image_size` with a margin as in MNIST (28: 24 and 2 on each side);
    `image_size=8` keeps them unchanged. Raises UsageError for a smaller one.
    """
    if image_size < _SIDE:
        raise UsageError(f"data.image_size={image_size}: the digits are 8x8; expected 8 or more.")

    def load() -> DecodedImages:
        # The file without sklearn.datasets, whose import takes two seconds, most of the time to the first step.
        file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
        table = torch.from_numpy(np.loadtxt(str(file), delimiter=",", dtype=np.uint8))
        levels, labels = table[:, :-1].reshape(-1, 1, _SIDE, _SIDE), table[:, -1].long()
        # The file is ordered by writer: at random, all writers are in every split.
        splits = split_at_random(len(labels), val_size, test_size)
        return DecodedImages(_upsample(levels, image_size), splits, labels, tuple("0123456789"))

    return ImageDataModule(load, **options)


def _upsample(levels: Tensor, image_size: int) -> Tensor:
    """Levels (N, 1, 8, 8) to uint8 (N, 1, image_size, image_size)."""
    grey = levels.float() * (255 / 16)  # 17 grey levels, 0..16
    if image_size != _SIDE:
        # The originals touch the border; the margin lets a stroke end inside the image, as in MNIST.
        margin = image_size // 14
        inner = image_size - 2 * margin
        grey = functional.interpolate(grey, size=(inner, inner), mode="bicubic", align_corners=False)
        grey = functional.pad(grey, [margin] * 4)
    return grey.round().clamp(0, 255).byte()
