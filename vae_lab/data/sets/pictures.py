"""Any folder of pictures, or an archive of it, decoded once on all cores and cached."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, Unpack

import torch
from torch import Tensor

from vae_lab.data.archives import ARCHIVE_SUFFIXES, unpack_archive
from vae_lab.data.cache import decode_cached
from vae_lab.data.datamodule import BatchOptions, ImageDataModule
from vae_lab.data.decode import Fit, PictureOptions
from vae_lab.data.images import DecodedImages, split_by_hash
from vae_lab.utils.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def folder(
    folder: str,
    image_size: int,
    channels: Literal[1, 3] = 3,
    fit: Fit = "pad",
    background: str = "white",
    max_pixels: int = 50_000_000,
    on_bad_image: Literal["stop", "skip"] = "stop",
    val_size: float = 0.1,
    test_size: float = 0.1,
    cache_dir: str = "~/.cache/vae_lab",
    root: str | None = None,
    **options: Unpack[BatchOptions],
) -> ImageDataModule:
    """The pictures in `folder` (or in an archive) and its subfolders, in the order of their relative names.

    `image_size` to `max_pixels`: see PictureOptions. `val_size` and `test_size` are fractions: see split_by_hash. The
    labels are the first-level subfolders, if every picture is in one. Raises UsageError if the folder is missing or
    empty, a picture is unreadable and `on_bad_image` is stop, none is left to train on, or the cache cannot be written.
    """
    if not folder.strip():
        raise UsageError("data.folder: has no value\nSet it to a folder of pictures: data.folder=PATH")
    pictures = PictureOptions(image_size, channels, fit, background, max_pixels)

    def load() -> DecodedImages:
        path, cache = (Path(name).expanduser().absolute() for name in (folder, cache_dir))
        if path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES):
            path = _without_outer_folder(unpack_archive(path, cache))
        names = find_pictures(path)
        if not names:
            raise UsageError(_no_pictures(path, folder))
        splits = split_by_hash(names, val_size, test_size)  # raises before decoding if there are too few to split
        pixels, unreadable = decode_cached(path, names, pictures, cache)
        if unreadable:
            readable = torch.tensor([name not in unreadable for name in names])
            splits = {split: rows[readable[rows]] for split, rows in splits.items()}
            if on_bad_image == "stop" or not len(splits["train"]):
                name, reason = next(iter(unreadable.items()))
                raise UsageError(
                    f"data.folder={folder}: {name} {reason}.\n{len(unreadable)} of {len(names)} pictures cannot be "
                    "read.\nRepair or remove them, or skip them if others are left: data.on_bad_image=skip"
                )
        return DecodedImages(pixels, splits, *_labels(names), tuple(unreadable))

    return ImageDataModule(load, **options)


def find_pictures(folder: Path) -> list[str]:
    """Sorted relative posix names of the picture files in the folder and its subfolders, hidden ones excluded.

    Raises UsageError for a subfolder that cannot be listed.
    """
    names: list[str] = []
    for where, folders, files in os.walk(folder, onerror=_raise_not_listed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = PurePosixPath(Path(where).relative_to(folder).as_posix())
        pictures = [name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        names += [str(inside / name) for name in pictures]
    return sorted(names)


def _raise_not_listed(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise UsageError(
            f"data.folder: {error.filename} cannot be listed ({error.strerror}).\n"
            "Expected a readable folder; change its permissions, or move it elsewhere."
        ) from error


def _without_outer_folder(folder: Path) -> Path:
    """The folder that most programs pack around everything, if it is there."""
    tops = {name.partition("/")[0] for name in find_pictures(folder)}
    inner = folder.joinpath(*tops)
    return inner if len(tops) == 1 and inner.is_dir() else folder


def _labels(names: Sequence[str]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels (N,) and sorted class names; None and () unless every picture is in a subfolder."""
    if not all("/" in name for name in names):
        return None, ()
    tops = [name.partition("/")[0] for name in names]
    classes = sorted(set(tops))
    number = {name: label for label, name in enumerate(classes)}
    return torch.tensor([number[top] for top in tops]), tuple(classes)


def _no_pictures(path: Path, folder: str) -> str:
    kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
    found = "no picture in" if path.is_dir() else "not an archive:" if path.is_file() else "no such folder:"
    fetch = ", or fetch them: python -m vae_lab.data.download pokemon" if path.name == "pokemon" else ""
    return (
        f"data.folder={folder}: {found} {path}\n"
        f"Expected {kinds} files, in it or in folders inside it; set data.folder=DIR (or a zip or tar of it){fetch}\n"
        "To start now, without a download: data=digits"
    )
