"""The data sets by name: each function combines a source and its batch options, as the `_target_` of a config."""

from __future__ import annotations

from typing import Literal, Unpack

from vae_lab.data.datamodule import BatchOptions, ImageDataModule
from vae_lab.data.sources.digits import Digits
from vae_lab.data.sources.folder import ImageFolder
from vae_lab.data.sources.mnist import MNIST, FashionMNIST


def digits(
    image_size: int = 28, val_size: int = 180, test_size: int = 180, **options: Unpack[BatchOptions]
) -> ImageDataModule:
    """scikit-learn's 1,797 handwritten digits, 8x8 enlarged to image_size x image_size; no download."""
    return ImageDataModule(Digits(image_size=image_size, val_size=val_size, test_size=test_size), **options)


def mnist(
    root: str, val_size: int = 5_000, test_size: int = 10_000, **options: Unpack[BatchOptions]
) -> ImageDataModule:
    """MNIST: the last test_size of 70,000 images are the test set, the last val_size of the rest the validation set."""
    return ImageDataModule(MNIST(root=root, val_size=val_size, test_size=test_size), **options)


def fashion_mnist(
    root: str, val_size: int = 5_000, test_size: int = 10_000, **options: Unpack[BatchOptions]
) -> ImageDataModule:
    """Fashion-MNIST, split as MNIST. Xiao et al. 2017, arXiv:1708.07747."""
    return ImageDataModule(FashionMNIST(root=root, val_size=val_size, test_size=test_size), **options)


def folder(
    folder: str,
    image_size: int,
    channels: int = 3,
    fit: Literal["pad", "crop", "stretch"] = "pad",
    background: str = "white",
    max_pixels: int = 50_000_000,
    on_bad_image: Literal["stop", "skip"] = "stop",
    val_size: float = 0.1,
    test_size: float = 0.1,
    cache_dir: str = "~/.cache/vae_lab",
    root: str | None = None,
    **options: Unpack[BatchOptions],
) -> ImageDataModule:
    """Any folder of pictures, or a zip or tar of it; val_size and test_size are fractions, split by file name."""
    source = ImageFolder(
        folder=folder,
        image_size=image_size,
        channels=channels,
        fit=fit,
        background=background,
        max_pixels=max_pixels,
        on_bad_image=on_bad_image,
        val_size=val_size,
        test_size=test_size,
        cache_dir=cache_dir,
    )
    return ImageDataModule(source, **options)
