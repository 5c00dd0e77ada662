"""On-disk cache of decoded pictures: one memory-mapped tensor, written atomically.

A cache is a folder named by its key, with `pixels.u8` (the concatenated rows) and `index.json`, which holds the
checksums of both. It may be deleted at any time; the next run rebuilds it.
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

_FORMAT = 2  # increase it when decoding or the files below change: older caches are then ignored
_PIXELS, _INDEX = "pixels.u8", "index.json"
_BLOCK = 2**24  # bytes per checksum: zlib releases the GIL, so the blocks are checked on all cores


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
        digest.update(repr((name, *_state(folder / name))).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _state(path: Path) -> tuple[int, int]:
    """Size and modification time; (-1, -1) for a broken link, which is reported when the file is read."""
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def open_cache(cache_dir: Path, key: str, shape: ImageShape) -> CachedImages | None:
    """Open the cache of this key, rows shaped (C, H, W); None if it is missing or damaged."""
    folder = cache_dir / key
    try:
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        size = (folder / _PIXELS).stat().st_size
        names, skipped, checksums = tuple(index["names"]), dict(index["skipped"]), index["checksums"]
        as_written = index["digest"] == _digest(index)
    except (OSError, ValueError, LookupError, TypeError):
        return None  # missing or damaged: either way it is rebuilt
    if not as_written or size != len(names) * math.prod(shape):
        return None
    pixels = _map(folder / _PIXELS, (len(names), *shape))
    return CachedImages(pixels, names, skipped) if _checksums(pixels) == checksums else None


def build_cache(cache_dir: Path, key: str, shape: ImageShape, rows: Iterable[DecodedPicture]) -> CachedImages:
    """Write the rows one by one and open the cache, or open that of another process that finished first.

    An exception raised by `rows` propagates and leaves no files. Raises UsageError if the folder cannot be written.
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
            "Expected a writable folder with space for the decoded pictures; set data.cache_dir to one."
        ) from error
    cached = open_cache(cache_dir, key, shape)
    if cached is None:
        raise UsageError(f"data.cache_dir={cache_dir}: {key} was deleted while it was being opened; run again.")
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
    # ASCII with escapes: file names need not be valid UTF-8.
    write_atomically(folder / _INDEX, json.dumps(index | {"digest": _digest(index)}).encode("ascii"))


def _digest(index: Mapping[str, object]) -> str:
    """SHA-256 of the index without its digest."""
    content = {name: value for name, value in index.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()


def _checksums(pixels: Tensor) -> list[int]:
    """CRC-32 of each block of the pixels; this also reads the file into the page cache for the first epoch."""
    content = pixels.flatten().numpy().data
    blocks = [content[start : start + _BLOCK] for start in range(0, len(content), _BLOCK)]
    with ThreadPoolExecutor(num_cores()) as pool:
        return list(pool.map(zlib.crc32, blocks))


def _map(path: Path, shape: tuple[int, int, int, int]) -> Tensor:
    size = math.prod(shape)
    if size == 0:
        return torch.empty(shape, dtype=torch.uint8)  # an empty file cannot be memory-mapped
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).reshape(shape)
