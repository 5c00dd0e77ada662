"""Data sets of any size, generated; a config names them as `data._target_`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from PIL import Image, ImageDraw

from scripts.benchmarks.workers import Turn
from vae_lab.data.cache import DecodedPicture, build_cache, open_cache
from vae_lab.data.datamodule import BatchOptions, ImageDataModule
from vae_lab.data.images import DecodedImages
from vae_lab.data.splits import split_by_count

HELD_OUT = 500  # images, at most a tenth
MAPPED_SHAPE = (3, 128, 128)
KEY = "generated"


@dataclass(frozen=True)
class Noise:
    """So many images of uniform noise, in memory: what a step costs does not depend on what it sees."""

    num_images: int
    channels: int
    image_size: int

    def load(self) -> DecodedImages:
        """Uint8 pixels (N, C, H, W)."""
        shape = (self.num_images, self.channels, self.image_size, self.image_size)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        return DecodedImages(pixels, split_by_count(self.num_images, min(HELD_OUT, self.num_images // 10), 0))


@dataclass(frozen=True)
class Mapped:
    """Images of a decoded folder's cache, memory-mapped."""

    root: str

    def load(self) -> DecodedImages:
        """Uint8 pixels (N, 3, 128, 128)."""
        cached = open_cache(Path(self.root), KEY, MAPPED_SHAPE)
        if cached is None:
            raise ValueError(f"data.root={self.root}: no cache made by the benchmark")
        return DecodedImages(
            cached.pixels, split_by_count(len(cached.names), min(HELD_OUT, len(cached.names) // 10), 0)
        )


def noise(num_images: int, channels: int = 1, image_size: int = 28, **options: Unpack[BatchOptions]) -> ImageDataModule:
    """Generated images in memory."""
    return ImageDataModule(Noise(num_images, channels, image_size), **options)


def mapped(root: str, **options: Unpack[BatchOptions]) -> ImageDataModule:
    """Generated images on disk."""
    return ImageDataModule(Mapped(root), **options)


def write_mapped(turn: Turn, folder: str, num_images: int) -> None:
    """The cache that `mapped` opens: one noise, rolled, since a picture of its own for each would take minutes."""
    pixels = np.random.default_rng(0).integers(0, 256, MAPPED_SHAPE, dtype=np.uint8)
    rows = (DecodedPicture(f"{i}.png", np.roll(pixels, i, axis=2)) for i in range(num_images))
    build_cache(Path(folder), KEY, MAPPED_SHAPE, rows)
    turn()


def write_pictures(turn: Turn, folder: str, num_pictures: int, size: int = 128) -> None:
    """PNG files with shading, shapes and grain, so that reading them costs what reading pictures costs."""
    for i, pixels in enumerate(pictures(num_pictures, size)):
        Image.fromarray(pixels).save(Path(folder) / f"{i:06d}.png", compress_level=3)
    turn()


def pictures(num_pictures: int, size: int) -> Iterator[np.ndarray]:
    """(size, size, 3) each."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, size)[:, None, None]
    grain = rng.integers(0, 12, (size, size, 3)).astype(np.uint8)
    for _ in range(num_pictures):
        top, bottom = rng.integers(0, 200, (2, 3))
        shade = np.broadcast_to(top + ramp * (bottom - top), (size, size, 3)).astype(np.uint8)
        picture = Image.fromarray(shade)
        draw = ImageDraw.Draw(picture)
        for x, y, side in rng.integers(0, size, (4, 3)).tolist():
            draw.ellipse((x, y, x + side // 2, y + side // 3), fill=tuple(rng.integers(0, 240, 3).tolist()))
        yield np.asarray(picture) + np.roll(grain, int(rng.integers(size)), axis=0)


def setup_seconds(turn: Turn, folder: str, cache: str, image_size: int = 128) -> None:
    """The time of ImageDataModule.setup on a folder of pictures, in a process that has done nothing else."""
    from hydra.utils import instantiate

    from scripts.benchmarks.configs import composed

    options = {"folder": folder, "image_size": image_size, "cache_dir": cache}
    config = composed(["data=folder", *(f"data.{key}={value}" for key, value in options.items())])
    data = instantiate(config.data, _convert_="all")
    start = time.perf_counter()
    data.setup()
    turn(time.perf_counter() - start)
