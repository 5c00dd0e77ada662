"""Any folder of pictures, decoded once on all cores and cached."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from vae_lab.data.cache import CachedImages, DecodedPicture, build_cache, cache_key, open_cache
from vae_lab.data.decode import SUFFIXES, Fit, PictureOptions, UnreadableImageError, decode
from vae_lab.data.images import DecodedImages
from vae_lab.data.splits import check_fractions, split_by_hash
from vae_lab.utils.cpu import num_cores
from vae_lab.utils.errors import UsageError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
OnBadImage = Literal["stop", "skip"]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class ImageFolder:
    """The pictures in `folder` (or in an archive) and its subfolders, hidden ones excluded.

    `image_size` to `max_pixels` as in PictureOptions. `val_size` and `test_size` are fractions, met on
    average: a picture's split depends on its own name only. The labels are the first-level subfolders, if
    every picture is in one. Raises UsageError for invalid values.
    """

    folder: str
    image_size: int
    channels: int = 3
    fit: Fit = "pad"
    background: str = "white"
    max_pixels: int = 50_000_000
    on_bad_image: OnBadImage = "stop"  # or "skip": leave the picture out and list it in DecodedImages.skipped
    val_size: float = 0.1
    test_size: float = 0.1
    cache_dir: str = "~/.cache/vae_lab"

    def __post_init__(self) -> None:
        if not self.folder.strip():
            raise UsageError("data.folder: has no value\nSet it to a folder of pictures: data.folder=PATH")
        check_fractions(self.val_size, self.test_size)
        if self.on_bad_image not in get_args(OnBadImage):
            raise UsageError(f"data.on_bad_image={self.on_bad_image}: expected stop or skip.")
        _ = self.options  # validated now rather than after minutes of other work

    @property
    def options(self) -> PictureOptions:
        """The decoding options."""
        return PictureOptions(**{option.name: getattr(self, option.name) for option in fields(PictureOptions)})

    @property
    def path(self) -> Path:
        """Absolute path of the folder or archive."""
        return Path(self.folder).expanduser().absolute()

    def load(self) -> DecodedImages:
        """Uint8 pixels (N, C, H, W), memory-mapped, in the order of the relative file names.

        Raises UsageError if the folder is missing or empty, a picture is unreadable and `on_bad_image` is stop,
        no picture is readable, none is left to train on, or the cache cannot be written.
        """
        if self.path.is_file() and self.path.name.lower().endswith(ARCHIVE_SUFFIXES):
            return self._load_archive()
        names = find_pictures(self.path)
        if not names:
            raise UsageError(_no_pictures(self.path))
        split_by_hash(names, self.val_size, self.test_size)  # raises before decoding if there are too few to split
        cached = self._decoded(names)
        labels, class_names = _labels(cached.names)
        splits = split_by_hash(cached.names, self.val_size, self.test_size)
        return DecodedImages(cached.pixels, splits, labels, class_names, tuple(cached.skipped))

    def _load_archive(self) -> DecodedImages:
        from vae_lab.data.sources.archives import unpack_archive

        folder = unpack_archive(self.path, self._cache_dir)
        tops = {name.partition("/")[0] for name in find_pictures(folder)}
        if len(tops) == 1 and folder.joinpath(*tops).is_dir():  # most programs pack one folder around everything
            folder = folder.joinpath(*tops)
        try:
            return replace(self, folder=str(folder)).load()
        except UsageError as error:
            raise UsageError(f"{self.path}, unpacked: {error}") from error

    @property
    def _cache_dir(self) -> Path:
        return Path(self.cache_dir).expanduser().absolute()

    def _decoded(self, names: Sequence[str]) -> CachedImages:
        cache_dir, key = self._cache_dir, cache_key(self.path, names, self.options)
        shape = (self.channels, self.image_size, self.image_size)
        cached = open_cache(cache_dir, key, shape)
        if cached is None:
            cached = build_cache(cache_dir, key, shape, _with_progress(self._rows(names), len(names)))
        if cached.skipped and self.on_bad_image == "stop":  # an earlier run skipped them
            raise _unreadable(next(iter(cached.skipped.values())))
        if not cached.names:
            first = next(iter(cached.skipped.values()))
            raise UsageError(f"{self.path}: none of its {len(names)} pictures can be read.\nThe first: {first}")
        return cached

    def _rows(self, names: Iterable[str]) -> Iterator[DecodedPicture]:
        return _in_order(self._row, names, num_cores())

    def _row(self, name: str) -> DecodedPicture:
        try:
            return DecodedPicture(name, decode(self.path / name, self.options))
        except UnreadableImageError as error:
            if self.on_bad_image == "stop":
                raise _unreadable(str(error)) from error
            return DecodedPicture(name, None, str(error))


def find_pictures(folder: Path) -> list[str]:
    """Sorted relative posix names of the picture files in the folder and its subfolders. Raises UsageError."""
    names: list[str] = []
    for where, folders, files in os.walk(folder, onerror=_raise_not_listed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = PurePosixPath(Path(where).relative_to(folder).as_posix())
        names += [str(inside / name) for name in files if _is_picture(name)]
    return sorted(names)


def _raise_not_listed(error: OSError) -> None:
    """Raise UsageError for an unreadable folder, whose pictures would otherwise be skipped silently."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise UsageError(
            f"data.folder: {error.filename} cannot be listed ({error.strerror}).\n"
            "Expected a readable folder; change its permissions, or move it elsewhere."
        ) from error


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _labels(names: Sequence[str]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels (N,) and sorted class names; None and () unless every picture is in a subfolder."""
    tops = [name.partition("/")[0] for name in names if "/" in name]
    if len(tops) < len(names):
        return None, ()
    classes = sorted(set(tops))
    number = {name: label for label, name in enumerate(classes)}
    return torch.tensor([number[top] for top in tops]), tuple(classes)


def _in_order(function: Callable[[_In], _Out], items: Iterable[_In], num_threads: int) -> Iterator[_Out]:
    """Map in threads, in order and at most a few items ahead: `Executor.map` would hold all results.

    Threads suffice, since Pillow releases the GIL while it decodes and resizes.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        ahead: deque[Future[_Out]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > 4 * num_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _with_progress(rows: Iterator[DecodedPicture], total: int) -> Iterator[DecodedPicture]:
    """The rows, with a progress bar on stderr if it is a terminal."""
    from rich.console import Console
    from rich.progress import track

    shown = sys.stderr.isatty()
    yield from track(rows, "Decoding pictures", total, console=Console(stderr=True), transient=True, disable=not shown)


def _unreadable(problem: str) -> UsageError:
    return UsageError(
        f"{problem}\nExpected an intact picture; repair or remove the file, or skip such files: data.on_bad_image=skip"
    )


def _no_pictures(folder: Path) -> str:
    kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
    found = "no picture in" if folder.is_dir() else "not an archive:" if folder.is_file() else "no such folder:"
    fetch = ", or fetch them: python -m vae_lab.data.download pokemon" if folder.name == "pokemon" else ""
    return (
        f"data.folder: {found} {folder}\n"
        f"Expected {kinds} files, in it or in folders inside it; set data.folder=DIR (or a zip or tar of it){fetch}\n"
        "To start now, without a download: data=digits"
    )
