"""MNIST and Fashion-MNIST: four IDX files, downloaded if missing."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from vae_lab.data.datamodule import BatchOptions, ImageDataModule
from vae_lab.data.images import DecodedImages, split_by_count
from vae_lab.utils.errors import UsageError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
LOOK_ALIKES = ("fashion", "kmnist", "kuzushiji", "emnist", "qmnist")  # words in the paths of sets with the same files
CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def mnist(
    root: str, val_size: int = 5_000, test_size: int = 10_000, **options: Unpack[BatchOptions]
) -> ImageDataModule:
    """70,000 grey handwritten digits, 28x28, of the files in `root`/MNIST/raw or anywhere below `root`.

    The official training images come first; `val_size` and `test_size` count images from the end.
    """
    classes = tuple("0123456789")
    return ImageDataModule(lambda: _load("MNIST", (), classes, root, val_size, test_size), **options)


def fashion_mnist(
    root: str, val_size: int = 5_000, test_size: int = 10_000, **options: Unpack[BatchOptions]
) -> ImageDataModule:
    """70,000 grey pictures of clothes, otherwise as MNIST. Xiao et al. 2017, arXiv:1708.07747."""
    return ImageDataModule(lambda: _load("FashionMNIST", ("fashion",), CLOTHES, root, val_size, test_size), **options)


def _load(
    name: str, words: Sequence[str], classes: tuple[str, ...], root: str, val_size: int, test_size: int
) -> DecodedImages:
    """Pixels (70000, 1, 28, 28). Raises UsageError if a file is damaged, or missing and cannot be downloaded.

    name: that of the folder, and of the class in torchvision.datasets that has the addresses. words: see `_find_below`.
    """
    home = Path(root).expanduser().absolute()
    folder = home / name / "raw"
    paths = [_find(folder, file) for file in FILES]
    if missing := [file for file, path in zip(FILES, paths, strict=True) if not path.is_file()]:
        below = _find_below(home, name, words)
        if not below:
            _download(name, folder, missing)
        paths = below or [_find(folder, file) for file in FILES]
    train, train_labels, test, test_labels = map(read_idx, paths) if len(paths) == len(FILES) else _read_npz(*paths)
    pixels, labels = torch.cat([train, test]).unsqueeze(1), torch.cat([train_labels, test_labels]).long()
    if (len(train), len(test)) != (len(train_labels), len(test_labels)) or labels.max() >= len(classes):
        raise UsageError(
            f"{paths[0].parent}: {len(train)} and {len(test)} images with {len(train_labels)} and {len(test_labels)} "
            f"labels up to {int(labels.max())}.\nExpected a label below {len(classes)} for each image; remove the "
            "files, and the next run downloads them again."
        )
    return DecodedImages(pixels, split_by_count(len(pixels), val_size, test_size), labels, classes)


def _find_below(root: Path, name: str, words: Sequence[str]) -> list[Path]:
    """The four files in one folder below `root`, each perhaps in a folder of its own, or Keras's .npz; else none.

    words: which of LOOK_ALIKES, whose files are called the same, stand in the path.
    """
    folders: dict[Path, dict[str, Path]] = defaultdict(dict)
    for where, _, files in os.walk(root):
        marks = [word for word in LOOK_ALIKES if word in str(Path(where).relative_to(root.parent)).lower()]
        for file in sorted(files):
            kind, path = _kind(file), Path(where, file)
            if kind in FILES and marks == list(words):
                folders[path.parent.parent if _kind(path.parent.name) in FILES else path.parent][kind] = path
            elif path.suffix == ".npz" and path.stem.lower().replace("_", "").replace("-", "") == name.lower():
                return [path]
    return next(([found[file] for file in FILES] for found in folders.values() if len(found) == len(FILES)), [])


def _kind(file: str) -> str:
    """The name in FILES of a file, which may have a dot for the hyphen and a suffix: train-images.idx3-ubyte.gz."""
    return file.removesuffix(".gz").replace(".idx", "-idx")


def _read_npz(path: Path) -> list[Tensor]:
    """Images and labels of train and test as Keras stores them. Raises UsageError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [torch.from_numpy(arrays[key]) for key in ("x_train", "y_train", "x_test", "y_test")]
    except Exception as error:  # on a damaged file, the readers raise nearly any
        raise UsageError(
            f"{path}: cannot be read ({error}).\nExpected Keras's file with x_train, y_train, x_test and y_test.\n"
            "Move the file elsewhere, and the next run downloads the set."
        ) from error


def _find(folder: Path, file: str) -> Path:
    """Path of the file: with .gz only if that exists and the raw file does not."""
    raw, packed = folder / file, folder / f"{file}.gz"
    return packed if packed.is_file() and not raw.is_file() else raw


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor of a raw or gzipped IDX file: a magic number, the dimensions, then one byte per value.

    The name says how many dimensions it has. Raises UsageError.
    """
    num_dims = 3 if "idx3" in path.name else 1
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):  # not by suffix: browsers may decompress a .gz but keep its name
            content = gzip.decompress(content)
        magic, *shape = struct.unpack_from(f">{1 + num_dims}I", content)
        if magic != 0x0800 + num_dims:
            raise ValueError(f"its magic number is {magic:08x}, expected {0x0800 + num_dims:08x}")
        return torch.tensor(np.frombuffer(content, np.uint8, offset=4 + 4 * num_dims).reshape(shape))
    except (OSError, EOFError, ValueError, zlib.error, struct.error) as error:
        raise UsageError(
            f"{path}: cannot be read ({error}).\nExpected an intact IDX file of {num_dims} dimensions.\n"
            "Remove the file, and the next run downloads it again."
        ) from error


def _download(name: str, folder: Path, missing: Sequence[str]) -> None:
    """Download the missing files, gzipped, into the folder."""
    import torchvision.datasets
    from rich.console import Console
    from rich.progress import track

    from vae_lab.data.download import download_failed, fetch_file

    source = getattr(torchvision.datasets, name)
    checksums = dict(source.resources)  # MD5, by name
    try:
        for file in track(missing, f"Downloading {name}", console=Console(stderr=True), transient=True):
            packed = f"{file}.gz"
            fetch_file([mirror + packed for mirror in source.mirrors], folder / packed, checksums[packed])
    except (OSError, HTTPException) as error:
        looked_for = f"{missing[0]} (or .gz) in {folder}, then at {' and '.join(source.mirrors)}"
        raise download_failed(name, error, looked_for) from error
