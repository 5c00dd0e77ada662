"""Decoded pictures kept on disk between runs: one memory-mapped tensor, never half a one.

A cache is a folder named by its key, with `pixels.u8` (the rows, one after the other) and `index.json`, which holds
the checksums of both. It may be deleted at any time; the next run makes it again.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_lab.core import ImageShape
from vae_lab.data.atomic_folders import publish_folder, temporary_folder
from vae_lab.utils.cpu import num_cores
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import fsync, write_atomically

_FORMAT = 2  # raise it when decoding or the files below change: older caches are then left alone
_PIXELS, _INDEX = "pixels.u8", "index.json"
_BLOCK = 2**24  # bytes to a checksum: zlib lets go of the interpreter's lock, so blocks are summed on all cores


class DecodedPicture(NamedTuple):
    """One picture on its way into the cache: its pixels, or why there are none."""

    name: str
    pixels: NDArray[np.uint8] | None  # (C, H, W)
    problem: str = ""


class CachedImages(NamedTuple):
    """A cache that has been opened."""

    pixels: Tensor  # uint8, (N, C, H, W), memory-mapped; writing to it changes no file
    names: tuple[str, ...]  # of the N pictures
    skipped: Mapping[str, str]  # name of each picture left out, and why


def cache_key(folder: Path, names: Sequence[str], options: object) -> str:
    """Changes with any file's relative name, size or time of change, and with the options (by their repr)."""
    digest = hashlib.sha256(repr((_FORMAT, options)).encode())
    for name in names:
        digest.update(repr((name, *_state(folder / name))).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _state(path: Path) -> tuple[int, int]:
    """Size and time of change; of a link to nowhere neither: whoever reads it will say so."""
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def open_cache(cache_dir: Path, key: str, shape: ImageShape) -> CachedImages | None:
    """The cache of this key, its rows shaped (C, H, W); None where there is no whole one."""
    folder = cache_dir / key
    try:
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        size = (folder / _PIXELS).stat().st_size
        names, skipped, checksums = tuple(index["names"]), dict(index["skipped"]), index["checksums"]
        as_written = index["digest"] == _digest(index)
    except (OSError, ValueError, LookupError, TypeError):
        return None  # absent, or damaged, which is the same: it is made again
    if not as_written or size != len(names) * math.prod(shape):
        return None
    pixels = _map(folder / _PIXELS, (len(names), *shape))
    return CachedImages(pixels, names, skipped) if _checksums(pixels) == checksums else None


def build_cache(cache_dir: Path, key: str, shape: ImageShape, rows: Iterable[DecodedPicture]) -> CachedImages:
    """Write the rows, one by one, and open the cache; where another process was faster, open that one's.

    What `rows` raises passes through and leaves nothing behind. Raises UsageError when the folder cannot be
    written.
    """
    try:
        with temporary_folder(cache_dir) as temporary:
            _write(temporary, shape, rows)
            publish_folder(
                temporary, cache_dir / key, lambda folder: open_cache(cache_dir, folder.name, shape) is not None
            )
    except OSError as error:
        raise UsageError(
            f"data.cache_dir={cache_dir}: cannot be written ({error.strerror or error}).\n"
            "Expected a folder for the decoded pictures; set data.cache_dir to one with room."
        ) from error
    cached = open_cache(cache_dir, key, shape)
    if cached is None:
        raise UsageError(f"data.cache_dir={cache_dir}: {key} vanished while it was opened; run again.")
    return cached


def _write(folder: Path, shape: ImageShape, rows: Iterable[DecodedPicture]) -> None:
    names, skipped = [], {}
    with (folder / _PIXELS).open("wb") as file:
        for name, pixels, problem in rows:
            if pixels is None:
                skipped[name] = problem
                continue
            if pixels.shape != shape or pixels.dtype != np.uint8:
                raise ValueError(f"{name}: {pixels.dtype} {pixels.shape}, expected uint8 {shape}")
            names.append(name)
            file.write(np.ascontiguousarray(pixels).data)
        fsync(file)
    checksums = _checksums(_map(folder / _PIXELS, (len(names), *shape)))
    index = {"names": names, "skipped": skipped, "checksums": checksums}
    # ASCII with escapes: a file name need not be valid UTF-8.
    write_atomically(folder / _INDEX, json.dumps(index | {"digest": _digest(index)}).encode("ascii"))


def _digest(index: Mapping[str, object]) -> str:
    """Of all that an index says."""
    said = {name: value for name, value in index.items() if name != "digest"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode("ascii")).hexdigest()


def _checksums(pixels: Tensor) -> list[int]:
    """CRC-32 of each block of the pixels; reading them also brings them into memory for the first epoch."""
    content = pixels.flatten().numpy().data
    blocks = [content[start : start + _BLOCK] for start in range(0, len(content), _BLOCK)]
    with ThreadPoolExecutor(num_cores()) as pool:
        return list(pool.map(zlib.crc32, blocks))


def _map(path: Path, shape: tuple[int, int, int, int]) -> Tensor:
    size = math.prod(shape)
    if size == 0:
        return torch.empty(shape, dtype=torch.uint8)  # nothing cannot be mapped
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).reshape(shape)
