"""On-disk cache of decoded pictures: one memory-mapped .npy file, named by its key.

It may be deleted at any time; the next run builds it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae_lab.data.decode import DecodedPicture, PictureOptions, UnreadableImageError, decode
from vae_lab.utils.cpu import num_cores
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import atomic_file, write_atomically

_FORMAT = 6  # increase it when decoding or the files below change: older caches are then ignored
_CHUNK = 64  # pictures in memory at once


class CachedPictures(NamedTuple):
    pixels: Tensor  # uint8, (N, C, H, W); memory-mapped copy-on-write: writing to it leaves the file unchanged
    unreadable: dict[str, str]  # the reason by name for each that cannot be read (a black row)
    peak: int | None  # the largest level of all grey pictures of 16 bits


def decode_cached(
    names: Sequence[str], sources: Iterable[Path | bytes], stamp: object, options: PictureOptions, cache_dir: Path
) -> CachedPictures:
    """Decode files, or their contents, unless that was done before.

    names: of the sources, in messages. stamp: changes, as does its repr, when the sources do. Raises UsageError if the
    cache cannot be written.
    """
    path = cache_dir / f"{hashlib.sha256(repr((_FORMAT, options, stamp)).encode()).hexdigest()}.npy"
    with contextlib.suppress(OSError, ValueError):  # it is missing or cut short
        return _open(path)
    _build(path, names, sources, options)
    return _open(path)


@contextlib.contextmanager
def cache_file(path: Path) -> Iterator[IO[bytes]]:
    """An `atomic_file` of the cache. Raises UsageError if it cannot be written; nothing else inside raises OSError."""
    try:
        with atomic_file(path) as file:
            yield file
    except OSError as error:
        raise UsageError(
            f"data.cache_dir={path.parent}: cannot be written ({error.strerror or error}).\n"
            "Expected a writable folder with space for the decoded pictures; set data.cache_dir to one."
        ) from error


def file_stamp(path: Path) -> tuple[int, int]:
    """Size and modification time."""
    stat = path.stat() if path.exists() else path.lstat()  # a broken link is reported when the file is read
    return stat.st_size, stat.st_mtime_ns


def _open(path: Path) -> CachedPictures:
    pixels = np.lib.format.open_memmap(path, mode="c")  # raises ValueError if cut short
    return CachedPictures(torch.from_numpy(pixels), *json.loads(path.with_suffix(".json").read_text("utf-8")))


def _build(path: Path, names: Sequence[str], sources: Iterable[Path | bytes], options: PictureOptions) -> None:
    """Decode in threads, since Pillow releases the GIL, and write row by row."""
    from rich.console import Console
    from rich.progress import track

    def row(source: Path | bytes) -> DecodedPicture | str:
        try:
            return decode(source, options)
        except UnreadableImageError as error:
            return str(error)

    unreadable, peaks, remaining = {}, [], zip(names, sources, strict=True)
    # Not a memory map for writing: on a full disk it ends the process with a bus error.
    with cache_file(path) as file, ThreadPoolExecutor(num_cores()) as pool:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *options.shape)}
        np.lib.format.write_array_header_1_0(file, header)
        starts = range(0, len(names), _CHUNK)
        for _ in track(starts, "Decoding pictures", console=Console(stderr=True), transient=True):
            chunk = list(islice(remaining, _CHUNK))
            for (name, _), found in zip(chunk, pool.map(row, [source for _, source in chunk]), strict=True):
                if isinstance(found, str):
                    unreadable[name] = found
                    file.write(bytes(math.prod(options.shape)))
                else:
                    file.write(found.pixels.tobytes())
                    peaks += [] if found.peak is None else [found.peak]
        # ASCII with escapes: file names need not be valid UTF-8.
        write_atomically(path.with_suffix(".json"), json.dumps([unreadable, max(peaks, default=None)]).encode("ascii"))
