"""Decoded pictures kept on disk between runs: one memory-mapped tensor, never half a one.

A cache is a folder named by its key, with `pixels.u8` (the rows, one after the other) and `index.json`. It
may be deleted at any time; the next run makes it again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_lab.errors import UsageError

_FORMAT = 1  # raise it when decoding or the files below change: older caches are then left alone
_PIXELS, _INDEX = "pixels.u8", "index.json"
_BUILDING = ".building-"  # and a random name: a cache in the making
_DAY = 86_400.0

Shape = tuple[int, int, int]


class Row(NamedTuple):
    """One picture on its way into the cache: its pixels, or why there are none."""

    name: str
    pixels: NDArray[np.uint8] | None  # (C, H, W)
    problem: str = ""


class Cached(NamedTuple):
    """A cache that has been opened."""

    pixels: Tensor  # uint8, (N, C, H, W), memory-mapped; writing to it changes no file
    names: tuple[str, ...]  # of the N pictures
    skipped: Mapping[str, str]  # name of each picture left out, and why


def cache_key(folder: Path, names: Sequence[str], options: object) -> str:
    """Changes with any file's relative name, size or time of change, and with the options (by their repr)."""
    digest = hashlib.sha256(repr((_FORMAT, options)).encode())
    for name in names:
        stat = (folder / name).stat()
        digest.update(repr((name, stat.st_size, stat.st_mtime_ns)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def open_cache(cache_dir: Path, key: str, shape: Shape) -> Cached | None:
    """The cache of this key, its rows shaped (C, H, W); None where there is no whole one."""
    folder = cache_dir / key
    try:
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        size = (folder / _PIXELS).stat().st_size
        names, skipped = tuple(index["names"]), dict(index["skipped"])
    except (OSError, ValueError, LookupError, TypeError):
        return None  # absent, or damaged, which is the same: it is made again
    if size != len(names) * math.prod(shape):
        return None
    return Cached(_map(folder / _PIXELS, (len(names), *shape)), names, skipped)


def build_cache(cache_dir: Path, key: str, shape: Shape, rows: Iterable[Row]) -> Cached:
    """Write the rows, one by one, and open the cache; where another process was faster, open that one's.

    What `rows` raises passes through and leaves nothing behind. Raises UsageError when the folder cannot be
    written.
    """
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache_dir)
        temporary = cache_dir / f"{_BUILDING}{uuid.uuid4().hex}"
        temporary.mkdir()
        try:
            _write(temporary, shape, rows)
            _publish(temporary, cache_dir / key, shape)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UsageError(
            f"data.cache_dir={cache_dir}: cannot be written ({error.strerror or error}).\n"
            "Expected a folder for the decoded pictures; set data.cache_dir to one with room."
        ) from error
    cached = open_cache(cache_dir, key, shape)
    if cached is None:
        raise UsageError(f"data.cache_dir={cache_dir}: {key} vanished while it was opened; run again.")
    return cached


def _write(folder: Path, shape: Shape, rows: Iterable[Row]) -> None:
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
        _flush(file)
    with (folder / _INDEX).open("wb") as file:
        # ASCII with escapes: a file name need not be valid UTF-8.
        file.write(json.dumps({"names": names, "skipped": skipped}).encode("ascii"))
        _flush(file)


def _publish(temporary: Path, final: Path, shape: Shape) -> None:
    """Give a whole cache its name in one step; a whole one that is already there stays."""
    if final.exists() and open_cache(final.parent, final.name, shape) is None:
        # By a rename: whoever has it mapped keeps its pages, and no one opens it half removed.
        damaged = final.rename(f"{temporary}-damaged")
        shutil.rmtree(damaged, ignore_errors=True)
    _sync_folder(temporary)
    try:
        temporary.rename(final)
    except OSError:
        if open_cache(final.parent, final.name, shape) is None:
            raise
    _sync_folder(final.parent)


def _remove_abandoned(cache_dir: Path) -> None:
    """Remove what killed processes left, once nothing was written to it for a day."""
    for pixels in cache_dir.glob(f"{_BUILDING}*/{_PIXELS}"):
        with suppress(FileNotFoundError):  # another process may be doing the same
            if time.time() - pixels.stat().st_mtime > _DAY:
                shutil.rmtree(pixels.parent, ignore_errors=True)


def _map(path: Path, shape: tuple[int, int, int, int]) -> Tensor:
    size = math.prod(shape)
    if size == 0:
        return torch.empty(shape, dtype=torch.uint8)  # nothing cannot be mapped
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).reshape(shape)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows opens no folder
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
