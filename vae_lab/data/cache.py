"""On-disk cache of decoded pictures: one memory-mapped .npy file, named by its key.

It may be deleted at any time; the next run builds it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from vae_lab.data.decode import PictureOptions, UnreadableImageError, decode
from vae_lab.utils.cpu import num_cores
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import atomic_file, write_atomically

_FORMAT = 5  # increase it when decoding or the files below change: older caches are then ignored
_CHUNK = 64  # pictures in memory at once


def decode_cached(
    folder: Path, names: Sequence[str], options: PictureOptions, cache_dir: Path
) -> tuple[Tensor, dict[str, str]]:
    """Pixels of the pictures, uint8 (N, C, H, W), and the reason by name for each that cannot be read (a black row).

    The tensor is memory-mapped copy-on-write: writing to it leaves the file unchanged. Raises UsageError if the cache
    cannot be written.
    """
    path = cache_dir / f"{_key(folder, names, options)}.npy"
    with contextlib.suppress(OSError, ValueError):  # it is missing or cut short
        return _open(path)
    _build(path, folder, names, options)
    return _open(path)


@contextlib.contextmanager
def cache_file(path: Path) -> Iterator[IO[bytes]]:
    """An `atomic_file` of the cache. Raises UsageError if it cannot be written; reading inside must raise no OSError."""
    try:
        with atomic_file(path) as file:
            yield file
    except OSError as error:
        raise UsageError(
            f"data.cache_dir={path.parent}: cannot be written ({error.strerror or error}).\n"
            "Expected a writable folder with space for the decoded pictures; set data.cache_dir to one."
        ) from error


def _key(folder: Path, names: Sequence[str], options: PictureOptions) -> str:
    """Hash of the options and of the relative name, size and modification time of each file."""
    digest = hashlib.sha256(repr((_FORMAT, options)).encode())
    for name in names:
        path = folder / name
        stat = path.stat() if path.exists() else path.lstat()  # a broken link is reported when the file is read
        digest.update(repr((name, stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()


def _open(path: Path) -> tuple[Tensor, dict[str, str]]:
    pixels = np.lib.format.open_memmap(path, mode="c")  # raises ValueError if cut short
    return torch.from_numpy(pixels), json.loads(path.with_suffix(".json").read_text("utf-8"))


def _build(path: Path, folder: Path, names: Sequence[str], options: PictureOptions) -> None:
    """Decode in threads, since Pillow releases the GIL, and write row by row."""
    from rich.console import Console
    from rich.progress import track

    shape = (options.channels, options.image_size, options.image_size)

    def row(name: str) -> tuple[bytes, str]:
        try:
            return decode(folder / name, options).tobytes(), ""
        except UnreadableImageError as error:
            return bytes(math.prod(shape)), str(error)

    unreadable = {}
    # Not a memory map for writing: on a full disk it ends the process with a bus error.
    with cache_file(path) as file, ThreadPoolExecutor(num_cores()) as pool:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *shape)}
        np.lib.format.write_array_header_1_0(file, header)
        chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
        for chunk in track(chunks, "Decoding pictures", console=Console(stderr=True), transient=True):
            for name, (pixels, problem) in zip(chunk, pool.map(row, chunk), strict=True):
                file.write(pixels)
                if problem:
                    unreadable[name] = problem
        # ASCII with escapes: file names need not be valid UTF-8.
        write_atomically(path.with_suffix(".json"), json.dumps(unreadable).encode("ascii"))
