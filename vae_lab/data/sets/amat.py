"""MNIST binarised once and for all: the three text files that papers since 2011 compare on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from vae_lab.data.datamodule import BatchOptions, ImageDataModule
from vae_lab.data.images import DecodedImages, consecutive
from vae_lab.utils.errors import UsageError

PARTS = ("train", "valid", "test")
ADDRESS = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"
_SIDE = 28


def static_mnist(root: str, **options: Unpack[BatchOptions]) -> ImageDataModule:
    """The binarised digits of Larochelle and Murray (2011), without labels: 50,000, 10,000 and 10,000, as published.

    root: the folder, or one above it, that holds binarized_mnist_train.amat, ..._valid.amat and ..._test.amat.
    """

    def load() -> DecodedImages:
        home = Path(root).expanduser().absolute()
        names = [f"binarized_mnist_{part}.amat" for part in PARTS]
        found = {file: Path(where, file) for where, _, files in os.walk(home) for file in files if file in names}
        if missing := [name for name in names if name not in found]:
            raise UsageError(
                f"data.root={root}: {', '.join(missing)} is not there nor in a folder below\n"
                f"Download it from {ADDRESS}/{missing[0]}, or take data=mnist, which samples the pixels anew."
            )
        parts = [_read(found[name]) for name in names]
        return DecodedImages(torch.cat(parts), consecutive([len(part) for part in parts]))

    return ImageDataModule(load, **options)


def _read(path: Path) -> Tensor:
    """uint8 (N, 1, 28, 28) of 0 and 255 of a text of the digits 0 and 1. Raises UsageError."""
    digits = np.frombuffer(path.read_bytes().translate(None, b" \t\r\n"), np.uint8) - ord("0")
    if not len(digits) or len(digits) % _SIDE**2 or digits.max() > 1:
        raise UsageError(
            f"{path}: cannot be read as rows of {_SIDE**2} zeros and ones.\n"
            f"Expected the file of {ADDRESS}; download it again."
        )
    return torch.from_numpy(digits * np.uint8(255)).view(-1, 1, _SIDE, _SIDE)
