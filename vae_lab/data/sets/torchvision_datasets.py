"""The data sets of torchvision, decoded once into memory."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from PIL import Image

from vae_lab.config.validation import names_to_choose
from vae_lab.data.datamodule import BatchOptions, ImageDataModule
from vae_lab.data.decode import Channels, Fit, PictureOptions, convert
from vae_lab.data.images import SPLITS, DecodedImages, Split, complete_splits, consecutive
from vae_lab.data.labels import Labels
from vae_lab.utils.errors import UsageError

BY_TRAIN: dict[Split, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
BY_SPLIT: dict[Split, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
WHOLE: dict[Split, dict[str, Any]] = {"train": {}}
WITH_VAL: dict[Split, dict[str, Any]] = BY_SPLIT | {"val": {"split": "val"}}
WITH_VALID: dict[Split, dict[str, Any]] = BY_SPLIT | {"val": {"split": "valid"}}
# The arguments of torchvision's class for each split. A list, because others of its classes read videos or pickles.
DATASETS: dict[str, Mapping[Split, dict[str, Any]]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "EMNIST", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS"), BY_TRAIN),
    **dict.fromkeys(("Food101", "GTSRB", "STL10", "SVHN"), BY_SPLIT),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102", "PCAM", "RenderedSST2"), WITH_VAL),
    **dict.fromkeys(("CelebA", "Country211"), WITH_VALID),
    "OxfordIIITPet": BY_SPLIT | {"train": {"split": "trainval"}},
    "Omniglot": {"train": {"background": True}, "test": {"background": False}},
    **dict.fromkeys(("Caltech101", "Caltech256", "EuroSAT", "FakeData", "SEMEION"), WHOLE),
}
OTHER_CLASSES = ("Omniglot",)  # in its test split: no labels


def torchvision(
    dataset: str,
    root: str,
    options: dict[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    channels: Channels | None = None,
    fit: Fit = "pad",
    background: str = "white",
    val_size: float = 0.1,
    test_size: float = 0.1,
    **batches: Unpack[BatchOptions],
) -> ImageDataModule:
    """A data set of torchvision.datasets below `root`, downloaded if it is missing and the class can.

    options: other arguments of the class, such as {split: letters} of EMNIST. image_size, channels: by default those of
    the pictures, if all have one size; fit, background: see PictureOptions. val_size, test_size: fractions or numbers
    of the training images, where the set has no such split. Raises UsageError.
    """
    if dataset not in DATASETS:
        names = names_to_choose(dataset, sorted(DATASETS), "data.dataset=")
        raise UsageError(f"data.dataset={dataset}: there is no such data set of torchvision{names}")

    def load() -> DecodedImages:
        parts = {
            split: _open(dataset, root, arguments | (options or {})) for split, arguments in DATASETS[dataset].items()
        }
        parts = {split: parts[split] for split in SPLITS if split in parts}
        first: Image.Image = parts["train"][0][0]
        size = image_size or (first.height, first.width)
        pictures = PictureOptions(size, channels or (1 if first.mode in ("1", "L") else 3), fit, background)
        decoded = [_decode(part, pictures, None if image_size else first.size, dataset) for part in parts.values()]
        pixels, targets = (torch.cat([part[i] for part in decoded]) for i in (0, 1))
        splits = consecutive([len(parts.get(split, ())) for split in SPLITS])
        labels = _labels(targets, parts["train"]) if dataset not in OTHER_CLASSES else (None, ())
        return DecodedImages(pixels, complete_splits(splits, val_size, test_size), *labels)

    return ImageDataModule(load, **batches)


def _open(dataset: str, root: str, arguments: dict[str, Any]) -> Any:
    """The torchvision data set. Raises UsageError if it cannot be downloaded or rejects its arguments."""
    from torchvision import datasets

    from vae_lab.data.download import download_failed

    home = Path(root).expanduser().absolute()
    make = getattr(datasets, dataset)
    known = inspect.signature(make).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    given = {"root": str(home), "download": True}
    try:
        return make(**{name: given[name] for name in given if name in known or takes_any} | arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"data.options: torchvision.datasets.{dataset} says: {error}\nIts arguments are {', '.join(known)}; set "
            "them as +data.options.NAME=VALUE"
        ) from error
    except ImportError as error:
        raise UsageError(f"data.dataset={dataset}: {error}\nInstall it: pip install {error.name}") from error
    except (OSError, RuntimeError, HTTPException) as error:
        raise download_failed(dataset, error, f"its files below {home}, then at the address in torchvision") from error


def _decode(
    part: Any, options: PictureOptions, size: tuple[int, int] | None, dataset: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (N, C, H, W) and targets (N,), -1 where they are not numbers. UsageError: a picture not of `size`."""
    from rich.console import Console
    from rich.progress import track

    pixels, targets = np.empty((len(part), *options.shape), np.uint8), torch.full((len(part),), -1)
    for i in track(range(len(part)), f"Reading {dataset}", console=Console(stderr=True), transient=True):
        picture, target = part[i]
        if size and picture.size != size:
            raise UsageError(
                f"data.dataset={dataset}: pictures of several sizes, such as {size[0]}x{size[1]} and "
                f"{picture.width}x{picture.height}\nSet data.image_size=SIDE or [HEIGHT,WIDTH]"
            )
        pixels[i] = convert(picture, options).pixels
        if isinstance(target, int):
            targets[i] = target
    return torch.from_numpy(pixels), targets


def _labels(targets: torch.Tensor, part: Any) -> Labels:
    """Labels if every target is a number, with the names that the data set has for them."""
    if targets.min() < 0:
        return None, ()
    count = int(targets.max()) + 1
    names = tuple(map(str, getattr(part, "classes", ())))
    return targets, names if len(names) >= count else tuple(map(str, range(count)))
