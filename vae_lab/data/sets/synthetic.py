"""Images with known factors: shapes drawn from their factors, and the published dSprites."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from vae_lab.data.cache import cache_file
from vae_lab.data.datamodule import BatchOptions, ImageDataModule
from vae_lab.data.images import DecodedImages, Factors, split_at_random
from vae_lab.utils.errors import UsageError

NAMES = ("shape", "scale", "orientation", "x", "y")
CATEGORICAL = (True, False, False, False, False)
SHAPES = ("square", "ellipse", "heart")
MAX_BYTES = 2**31  # of drawn images, which are kept in memory
DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
UNREADABLE = (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error)  # of a missing or damaged file
_ROWS = 4096  # of images read at a time


def shapes(
    image_size: int = 64,
    num_scales: int = 6,
    num_orientations: int = 20,
    num_positions: int = 16,
    val_size: int = 2000,
    test_size: int = 10_000,
    **options: Unpack[BatchOptions],
) -> ImageDataModule:
    """White shapes on black, one image for each combination of shape, scale, orientation, x and y: the factors.

    After dSprites (Matthey et al. 2017), drawn here: 92,160 images by default. num_positions: of x, and of y.
    Orientations are of a full turn, so that squares and ellipses look alike at several. The splits are random, the same
    in every run.
    """
    sizes = (len(SHAPES), num_scales, num_orientations, num_positions, num_positions)
    for name, size in zip(("scales", "orientations", "positions"), sizes[1:4], strict=True):
        if size < 1:
            raise UsageError(f"data.num_{name}={size}: expected 1 or more.")
    total = math.prod(sizes) * image_size**2
    if image_size < 16 or total > MAX_BYTES:
        raise UsageError(
            f"data=shapes: {math.prod(sizes):,} images of {image_size}x{image_size} take {total / 2**30:.1f} GiB.\n"
            f"Expected at least 16x16 and at most {MAX_BYTES // 2**30} GiB; take fewer positions or orientations."
        )

    def load() -> DecodedImages:
        pixels = torch.stack([_draw(shape, image_size, sizes) for shape in SHAPES]).view(-1, 1, image_size, image_size)
        grid = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
        splits = split_at_random(len(grid), val_size, test_size)
        return DecodedImages(pixels, splits, factors=Factors(grid, NAMES, CATEGORICAL))

    return ImageDataModule(load, **options)


def _draw(shape: str, size: int, sizes: tuple[int, ...]) -> Tensor:
    """All images of a shape, uint8 (scales, orientations, x, y, size, size): windows of one large drawing each."""
    _, num_scales, num_orientations, num_positions, _ = sizes
    centres = torch.linspace(0.2, 0.8, num_positions) if num_positions > 1 else torch.tensor([0.5])
    starts = (size - (centres * size).round().long()).tolist()  # whole pixels
    pixel = torch.arange(2 * size) + 0.5 - size
    found = torch.empty(num_scales, num_orientations, num_positions, num_positions, size, size, dtype=torch.uint8)
    for s, scale in enumerate(torch.linspace(0.5, 1, num_scales) * size * 0.15):
        for o, angle in enumerate(torch.arange(num_orientations) * (2 * math.pi / num_orientations)):
            x, y = pixel / scale, pixel.unsqueeze(1) / scale
            u, v = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
            drawing = _inside(shape, u, v).byte() * 255
            for i, left in enumerate(starts):
                for j, top in enumerate(starts):
                    found[s, o, i, j] = drawing[top : top + size, left : left + size]
    return found


def _inside(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Where a point of the shape's own plane lies in it; each shape fits into [-1, 1], up is negative v."""
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) <= 0.8
    if shape == "ellipse":
        return u.square() + (v / 0.6).square() <= 1
    u, v = 1.15 * u, -1.15 * v
    return (u.square() + v.square() - 1) ** 3 <= u.square() * v**3


def dsprites(
    file: str,
    cache_dir: str = "~/.cache/vae_lab",
    val_size: int = 20_000,
    test_size: int = 50_000,
    root: str | None = None,
    **options: Unpack[BatchOptions],
) -> ImageDataModule:
    """The 737,280 images of dSprites as published, unpacked once into the cache, 3 GB, and memory-mapped.

    file: `dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz` of github.com/google-deepmind/dsprites-dataset. Its pickled
    member is not read.
    """

    def load() -> DecodedImages:
        path = Path(file).expanduser()
        try:
            with zipfile.ZipFile(path) as archive:
                pixels = _unpacked(archive, Path(cache_dir).expanduser())
            with np.load(path, allow_pickle=False) as arrays:
                classes = torch.from_numpy(arrays["latents_classes"][:, 1:].astype(np.int64))  # the first is the colour
        except UsageError:
            raise
        except UNREADABLE as error:
            raise UsageError(
                f"data.file={path}: cannot be read ({error}).\nExpected {DSPRITES} of dSprites; set data.file, or "
                "take data=shapes, which needs no file."
            ) from error
        return DecodedImages(
            pixels, split_at_random(len(classes), val_size, test_size), factors=Factors(classes, NAMES, CATEGORICAL)
        )

    return ImageDataModule(load, **options)


def _unpacked(archive: zipfile.ZipFile, cache_dir: Path) -> Tensor:
    """The member `imgs`, (N, H, W) of 0 and 1, as uint8 (N, 1, H, W) of 0 and 255, memory-mapped copy-on-write."""
    path = cache_dir / f"dsprites-{archive.getinfo('imgs.npy').CRC:08x}.npy"
    if not path.is_file():
        with archive.open("imgs.npy") as member, cache_file(path) as file:
            np.lib.format.read_magic(member)
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            if dtype != np.uint8 or len(shape) != 3:
                raise ValueError(f"imgs is {dtype} {shape}, not uint8 (N, H, W)")
            header = {"descr": "|u1", "fortran_order": False, "shape": (shape[0], 1, *shape[1:])}
            np.lib.format.write_array_header_1_0(file, header)
            while part := member.read(_ROWS * shape[1] * shape[2]):
                file.write((np.frombuffer(part, np.uint8) * 255).astype(np.uint8).tobytes())
    return torch.from_numpy(np.lib.format.open_memmap(path, mode="c"))
