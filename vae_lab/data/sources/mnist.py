"""MNIST and Fashion-MNIST: four IDX files, downloaded if missing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from vae_lab.data.images import DecodedImages
from vae_lab.data.sources.idx import read_idx
from vae_lab.data.splits import split_by_count
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import write_atomically

_PARTS = ("train", "t10k")
_FILES = tuple(f"{part}-{kind}" for part in _PARTS for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))


@dataclass(frozen=True)
class MNIST:
    """70,000 grey handwritten digits, 28x28, the official training images first.

    `root` is the folder that holds `MNIST/raw`; `val_size` and `test_size` count images from the end, so the
    defaults are the official test set and the last 5,000 training images.
    """

    root: str
    val_size: int = 5000
    test_size: int = 10000

    dataset: ClassVar[str] = "MNIST"  # name of the folder and of the class in torchvision.datasets
    class_names: ClassVar[tuple[str, ...]] = tuple("0123456789")

    @property
    def folder(self) -> Path:
        """Folder of the four files, raw or with .gz."""
        return Path(self.root).expanduser().absolute() / self.dataset / "raw"

    def load(self) -> DecodedImages:
        """Uint8 pixels (70000, 1, 28, 28); missing files are downloaded first.

        Raises UsageError if a file is damaged, or missing and cannot be downloaded.
        """
        if missing := [name for name in _FILES if not _find(self.folder, name).is_file()]:
            _download(self.dataset, self.folder, missing)
        (train, train_labels), (test, test_labels) = (self._read(part) for part in _PARTS)
        if train.shape[1:] != test.shape[1:]:
            raise UsageError(
                f"{self.folder}: the training images are {_size(train)}, the test images {_size(test)}.\n"
                "Expected one size; remove the four files, and the next run downloads them again."
            )
        return DecodedImages(
            pixels=torch.cat([train, test]).unsqueeze(1),
            splits=split_by_count(len(train) + len(test), self.val_size, self.test_size),
            labels=torch.cat([train_labels, test_labels]).long(),
            class_names=self.class_names,
        )

    def _read(self, part: str) -> tuple[Tensor, Tensor]:
        """Images (N, H, W) and labels (N,) of one part, both uint8."""
        image_file, label_file = (_find(self.folder, name) for name in _FILES if name.startswith(part))
        images, labels = read_idx(image_file, num_dims=3), read_idx(label_file, num_dims=1)
        if len(images) != len(labels):
            raise UsageError(
                f"{label_file}: {len(labels)} labels for the {len(images)} images of {image_file.name}.\n"
                "Expected as many labels as images; remove both files, and the next run downloads them again."
            )
        if len(labels) and int(labels.max()) >= len(self.class_names):
            raise UsageError(
                f"{label_file}: found label {int(labels.max())}.\nExpected 0 to {len(self.class_names) - 1}; "
                "remove the file, and the next run downloads it again."
            )
        return images, labels


class FashionMNIST(MNIST):
    """70,000 grey pictures of clothes, 28x28; otherwise as MNIST."""

    dataset: ClassVar[str] = "FashionMNIST"
    class_names: ClassVar[tuple[str, ...]] = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )


def _find(folder: Path, name: str) -> Path:
    """Path of the file: with .gz only if that exists and the raw file does not."""
    raw, packed = folder / name, folder / f"{name}.gz"
    return packed if packed.is_file() and not raw.is_file() else raw


def _size(images: Tensor) -> str:
    return "x".join(str(side) for side in images.shape[1:])


def _download(dataset: str, folder: Path, missing: Sequence[str]) -> None:
    """Download the missing files, gzipped, into the folder."""
    import torchvision.datasets

    from vae_lab.data.download import DownloadError, with_progress

    source = getattr(torchvision.datasets, dataset)
    checksums = dict(source.resources)  # MD5, by name
    try:
        for name in with_progress(missing, f"Downloading {dataset}"):
            file = f"{name}.gz"
            write_atomically(folder / file, _read_mirrors(source.mirrors, file, checksums[file]))
    except (OSError, DownloadError) as error:
        raise UsageError(
            f"{dataset} could not be downloaded: {error or type(error).__name__}\n"
            f"Looked for {missing[0]} (or .gz) in {folder}, then at {' and '.join(source.mirrors)}\n"
            "Run the same command to resume; to start now, without a download: data=digits"
        ) from error


def _read_mirrors(mirrors: Sequence[str], file: str, checksum: str) -> bytes:
    """The file of the first mirror that sends the right one. Raises DownloadError with the last one's problem."""
    from vae_lab.data.download import DownloadError, read_url

    problem = ""
    for mirror in mirrors:
        try:
            content = read_url(mirror + file)
        except DownloadError as error:
            problem = str(error)
            continue
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found == checksum:
            return content
        problem = f"the downloaded file has the checksum {found}, expected {checksum}"
    raise DownloadError(problem)
