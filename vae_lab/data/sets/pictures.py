"""Any folder of pictures, or an archive of it, decoded once on all cores and cached."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, Unpack

import torch
from torch import Tensor

from vae_lab.data.cache import CachedPictures, decode_cached, file_stamp
from vae_lab.data.datamodule import BatchOptions, ImageDataModule
from vae_lab.data.decode import SIXTEEN_BITS, SUFFIXES, Channels, Fit, PictureOptions
from vae_lab.data.images import SPLITS, DecodedImages, Split, split_by_hash
from vae_lab.data.labels import labels_of_folders, read_labels
from vae_lab.utils.errors import UsageError

OnBadImage = Literal["stop", "skip"]
SPLIT_FOLDERS: dict[str, Split] = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"val": "val", "valid": "val", "validation": "val"},
}


def folder(
    folder: str,
    image_size: int | tuple[int, int],
    channels: Channels = 3,
    fit: Fit = "pad",
    background: str = "white",
    max_pixels: int = 50_000_000,
    range: tuple[float, float] | None = None,
    labels: str | None = None,
    label_name: str | None = None,
    on_bad_image: OnBadImage = "stop",
    val_size: float = 0.1,
    test_size: float = 0.1,
    cache_dir: str = "~/.cache/vae_lab",
    root: str | None = None,
    **options: Unpack[BatchOptions],
) -> ImageDataModule:
    """The pictures in `folder` (or in an archive) and its subfolders, in the order of their relative names.

    `image_size` to `range`: see PictureOptions. `labels`, `label_name`: see read_labels; by default the labels are the
    first-level subfolders, if every picture is in one. Subfolders `train` and `val` or `test` are the splits, and
    theirs the labels; `val_size` and `test_size` are fractions of what is not split so: see split_by_hash.
    Raises UsageError if the folder is missing or empty, a picture is unreadable and `on_bad_image` is stop, none is
    left to train on, or the cache cannot be written.
    """
    if not folder.strip():
        raise UsageError("data.folder: has no value\nSet it to a folder of pictures: data.folder=PATH")
    pictures = PictureOptions(image_size, channels, fit, background, max_pixels, range)

    def load() -> DecodedImages:
        path, cache = (Path(name).expanduser().absolute() for name in (folder, cache_dir))
        path = _unpacked(path, cache)
        found, others = find_pictures(path)
        if not found:
            raise UsageError(_no_pictures(path, folder))
        names, inner_names, splits = arrange(found, val_size, test_size)  # raises before decoding if they are too few
        classes = read_labels(labels, path, names, label_name) if labels else labels_of_folders(inner_names)
        stamp = [(name, *file_stamp(path / name)) for name in names]
        decoded = decode_cached(names, (path / name for name in names), stamp, pictures, cache)
        usable = readable(names, splits, decoded, on_bad_image, f"data.folder={folder}")
        others = [name for name in others if not labels or PurePosixPath(name).name != Path(labels).name]
        top = [name for name in inner_names if "/" not in name]
        warnings = list_warnings(
            decoded.peak, others, sorted({*found} - {*names}), top if not labels and len(top) < len(names) else ()
        )
        return DecodedImages(decoded.pixels, usable, *classes, tuple(decoded.unreadable), warnings=warnings)

    return ImageDataModule(load, **options)


def find_pictures(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted relative posix names of the pictures in the folder and its subfolders, and of the files of other formats.

    Hidden ones are excluded; links to folders are followed, once each. Raises UsageError for a subfolder that cannot be
    listed.
    """
    pictures: list[str] = []
    others: list[str] = []
    root = folder.resolve()
    seen = {root}
    for where, folders, files in os.walk(folder, onerror=_raise_not_listed, followlinks=True):
        folders[:] = [name for name in sorted(folders) if _is_to_list(Path(where, name), root, seen)]
        inside = PurePosixPath(Path(where).relative_to(folder).as_posix())
        for name in files:
            if not name.startswith("."):
                (pictures if name.lower().endswith(SUFFIXES) else others).append(str(inside / name))
    return sorted(pictures), sorted(others)


def _is_to_list(path: Path, root: Path, seen: set[Path]) -> bool:
    """Whether a folder is not hidden and its pictures have no other name; it is then noted in `seen`."""
    target = path.resolve()
    if path.name.startswith(".") or target in seen:
        return False
    inside = target.relative_to(root).parts if path.is_symlink() and root in target.parents else ()
    if inside and not any(part.startswith(".") for part in inside):
        return False  # it is listed there
    seen.add(target)
    return True


def _raise_not_listed(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise UsageError(
            f"data.folder: {error.filename} cannot be listed ({error.strerror}).\n"
            "Expected a readable folder; change its permissions, or move it elsewhere."
        ) from error


def _unpacked(path: Path, cache: Path) -> Path:
    """The folder of the pictures of an archive; another path as it is."""
    if not path.is_file():
        return path
    from vae_lab.data.archives import ARCHIVE_SUFFIXES, unpack_archive

    is_archive = path.name.lower().endswith(ARCHIVE_SUFFIXES)
    return _without_outer_folder(unpack_archive(path, cache)) if is_archive else path


def _without_outer_folder(folder: Path) -> Path:
    """The folder that most programs pack around everything, if it is there."""
    tops = {name.partition("/")[0] for name in find_pictures(folder)[0]}
    inner = folder.joinpath(*tops)
    return inner if len(tops) == 1 and inner.is_dir() else folder


class Layout(NamedTuple):
    names: list[str]  # of the pictures that are used
    inner_names: list[str]  # without the folder of their split
    splits: dict[Split, Tensor]


def arrange(names: list[str], val_size: float, test_size: float) -> Layout:
    """Splits by the folders train, val and test if train and another are there, else by a hash of the names.

    Of val and test, one that is not there is split from train. Pictures beside these folders are not used.
    """
    tops = [SPLIT_FOLDERS.get(name.partition("/")[0].lower()) if "/" in name else None for name in names]
    if not {"train"} < set(tops) - {None}:
        return Layout(names, names, split_by_hash(names, val_size, test_size))
    names = [name for name, top in zip(names, tops, strict=True) if top]
    used = [top for top in tops if top]
    rows = {split: torch.tensor([i for i, top in enumerate(used) if top == split]).long() for split in SPLITS}
    train = rows["train"]
    lacking = [0.0 if len(rows["val"]) else val_size, 0.0 if len(rows["test"]) else test_size]
    parts = split_by_hash([names[i] for i in train.tolist()], *lacking)
    val, test = (torch.cat([rows[split], train[parts[split]]]) for split in SPLITS[1:])
    inner = [name.partition("/")[2] for name in names]
    return Layout(names, inner, {"train": train[parts["train"]], "val": val, "test": test})


def readable(
    names: Sequence[str], splits: Mapping[Split, Tensor], decoded: CachedPictures, on_bad_image: OnBadImage, where: str
) -> Mapping[Split, Tensor]:
    """The splits without unreadable pictures. UsageError: there are any and they stop, or none is left to train on."""
    if not decoded.unreadable:
        return splits
    mask = torch.tensor([name not in decoded.unreadable for name in names])
    splits = {split: rows[mask[rows]] for split, rows in splits.items()}
    if on_bad_image == "stop" or not len(splits["train"]):
        name, reason = next(iter(decoded.unreadable.items()))
        raise UsageError(
            f"{where}: {name} {reason}.\n{len(decoded.unreadable)} of {len(names)} pictures cannot be read.\n"
            "Repair or remove them, or skip them if others are left: data.on_bad_image=skip"
        )
    return splits


def list_warnings(
    peak: int | None, others: Sequence[str] = (), beside: Sequence[str] = (), top: Sequence[str] = ()
) -> tuple[str, ...]:
    """What a user would not expect: files that are not read, pictures in no split or class, unused bits of 16."""
    found = []
    if others:
        suffixes = [PurePosixPath(name).suffix.lower() or "(no suffix)" for name in others]
        first = dict(zip(reversed(suffixes), reversed(others), strict=True))
        kinds = [f"{count} {kind} such as {first[kind]}" for kind, count in Counter(suffixes).most_common(5)]
        found.append(f"{len(others)} files are left out, of formats that are not read: {', '.join(kinds)}")
    if beside:
        found.append(f"{len(beside)} pictures beside the folders of the splits are left out, such as {beside[0]}")
    if top:
        found.append(f"no labels, because {len(top)} pictures are in no class folder, such as {top[0]}")
    if peak is not None and peak < SIXTEEN_BITS / 8:
        found.append(f"no 16-bit picture is brighter than {peak} of {SIXTEEN_BITS}: set data.range=[0,{peak}]")
    return tuple(found)


def _no_pictures(path: Path, folder: str) -> str:
    kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
    found = "no picture in" if path.is_dir() else "not an archive:" if path.is_file() else "no such folder:"
    fetch = ", or fetch them: python -m vae_lab.data.download pokemon" if path.name == "pokemon" else ""
    return (
        f"data.folder={folder}: {found} {path}\n"
        f"Expected {kinds} files, in it or in folders inside it; set data.folder=DIR (or a zip or tar of it){fetch}\n"
        "To start now, without a download: data=digits"
    )
