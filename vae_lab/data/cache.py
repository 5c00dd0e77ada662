"""On-disk cache of decoded pictures: one memory-mapped .npy file, named by its key, and their names beside it.

Both may be deleted at any time; the next run builds them again.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_lab.core import ImageShape
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import fsync, write_atomically

_FORMAT = 4  # increase it when decoding or the files below change: older caches are then ignored


class DecodedPicture(NamedTuple):
    """One picture to be cached: its pixels, or None and the reason why it cannot be read."""

    name: str
    pixels: NDArray[np.uint8] | None  # (C, H, W)
    problem: str = ""


class CachedImages(NamedTuple):
    pixels: Tensor  # uint8, (N, C, H, W), memory-mapped copy-on-write: writing to it leaves the file unchanged
    names: tuple[str, ...]  # of the N pictures
    skipped: Mapping[str, str]  # name of each skipped picture: reason


def cache_key(folder: Path, names: Sequence[str], options: object) -> str:
    """Hash of the relative name, size and modification time of each file, and of the repr of the options."""
    digest = hashlib.sha256(repr((_FORMAT, options)).encode())
    for name in names:
        digest.update(repr((name, *_state(folder / name))).encode())
    return digest.hexdigest()


def _state(path: Path) -> tuple[int, int]:
    """Size and modification time; (-1, -1) for a broken link, which is reported when the file is read."""
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def open_cache(cache_dir: Path, key: str, shape: ImageShape) -> CachedImages | None:
    """Open the cache of this key, rows shaped (C, H, W); None if it is missing or incomplete."""
    try:
        names, skipped = json.loads((cache_dir / f"{key}.json").read_text("utf-8"))
        pixels = np.lib.format.open_memmap(cache_dir / f"{key}.npy", mode="c")  # raises ValueError if cut short
    except (OSError, ValueError):
        return None
    if pixels.shape != (len(names), *shape):
        return None
    return CachedImages(torch.from_numpy(pixels), tuple(names), skipped)


def build_cache(cache_dir: Path, key: str, shape: ImageShape, rows: Iterable[DecodedPicture]) -> CachedImages:
    """Write the rows one by one under a temporary name, rename the file and open it.

    Other processes may do the same at once: the last one's file, of the same pictures, stays. An exception raised by
    `rows` propagates and leaves no files. Raises UsageError if the folder cannot be written.
    """
    temporary = cache_dir / f".{key}-{uuid.uuid4().hex}"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            names, skipped = _write(file, shape, rows)
            fsync(file)
        # ASCII with escapes: file names need not be valid UTF-8.
        write_atomically(cache_dir / f"{key}.json", json.dumps([names, skipped]).encode("ascii"))
        temporary.replace(cache_dir / f"{key}.npy")
    except OSError as error:
        raise UsageError(
            f"data.cache_dir={cache_dir}: cannot be written ({error.strerror or error}).\n"
            "Expected a writable folder with space for the decoded pictures; set data.cache_dir to one."
        ) from error
    finally:
        if temporary.is_file():
            temporary.unlink()
    cached = open_cache(cache_dir, key, shape)
    if cached is None:
        raise UsageError(f"data.cache_dir={cache_dir}: {key}.npy was deleted while it was being opened; run again.")
    return cached


def _write(file: IO[bytes], shape: ImageShape, rows: Iterable[DecodedPicture]) -> tuple[list[str], dict[str, str]]:
    """Write the rows as .npy; returns the names and the skipped names with their problems."""
    names: list[str] = []
    skipped: dict[str, str] = {}
    _write_header(file, 0, shape)
    for name, pixels, problem in rows:
        if pixels is None:
            skipped[name] = problem
            continue
        if pixels.shape != shape or pixels.dtype != np.uint8:
            raise ValueError(f"{name}: {pixels.dtype} {pixels.shape}, expected uint8 {shape}")
        names.append(name)
        file.write(np.ascontiguousarray(pixels).data)
    file.seek(0)
    _write_header(file, len(names), shape)
    return names, skipped


def _write_header(file: IO[bytes], count: int, shape: ImageShape) -> None:
    # Its length does not depend on the count: numpy leaves space for arrays that grow along the first axis.
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)
