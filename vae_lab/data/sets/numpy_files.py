"""Images as arrays: numpy's .npz and .npy, and a csv with a row of pixels for each image."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from vae_lab.data.datamodule import BatchOptions, ImageDataModule
from vae_lab.data.images import SPLITS, DecodedImages, complete_splits, consecutive
from vae_lab.data.labels import LABEL_COLUMNS, Labels, number_classes
from vae_lab.utils.errors import UsageError

Array = NDArray[Any]
Keys = Mapping[str, str]  # the name of an array in the file by its role
ROLES = ("images", "labels", *(f"{split}_{what}" for split in SPLITS for what in ("images", "labels")))
KNOWN_KEYS: tuple[Keys, ...] = (
    {"train_images": "x_train", "train_labels": "y_train", "test_images": "x_test", "test_labels": "y_test"},  # Keras
    {role: role for role in ROLES[2:]},  # MedMNIST
    *({"images": images, "labels": labels} for images in ("images", "x", "X") for labels in ("labels", "y")),
)
_CHUNK = 4096  # images converted at a time


def arrays(
    file: str,
    keys: dict[str, str] | None = None,
    shape: list[int] | None = None,
    range: tuple[float, float] | None = None,
    val_size: float = 0.1,
    test_size: float = 0.1,
    root: str | None = None,
    **options: Unpack[BatchOptions],
) -> ImageDataModule:
    """The images and labels in a .npz, .npy or .csv; an .npy of uint8 (N, H, W) or (N, C, H, W) stays on the disk.

    Images are (N, H, W), (N, H, W, C), (N, C, H, W), or flat with `shape` (C, H, W). Integers are levels from 0 to 255,
    or 0 and 1; other numbers lie in [0, 1] or in `range`, whose ends become black and white. keys: the names of the
    arrays in the .npz, as {images: X, labels: y} or {train_images: ..., train_labels: ..., val_images: ..., ...}; those
    of Keras and MedMNIST are known. val_size, test_size: fractions or numbers of the training images, where the file
    has no such split. Raises UsageError.
    """
    path = Path(file).expanduser()
    if unknown := set(keys or ()) - set(ROLES):
        raise UsageError(f"data.keys: there is no {', '.join(sorted(unknown))}\nexpected some of: {', '.join(ROLES)}")
    if range and not range[0] < range[1]:
        raise UsageError(f"data.range={list(range)}: expected [black,white], the first below the second.")

    def load() -> DecodedImages:
        try:
            images, labels = _read(path, keys)
            parts = [_to_pixels(images[split], shape, range) for split in SPLITS if split in images]
            pixels = torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))
        except UsageError as error:
            raise UsageError(f"data.file={file}: {error}") from error
        except Exception as error:  # on a damaged file, the readers raise nearly any
            raise UsageError(
                f"data.file={file}: cannot be read ({str(error).partition(chr(10))[0] or type(error).__name__}).\n"
                "Expected numbers in an intact .npz, .npy or .csv; objects are not read, for they may hold code."
            ) from error
        sizes = [len(images.get(split, ())) for split in SPLITS]
        named, warnings = _labels([labels[split] for split in SPLITS if split in labels], [n for n in sizes if n])
        splits = complete_splits(consecutive(sizes), val_size, test_size)
        return DecodedImages(pixels, splits, *named, warnings=warnings)

    return ImageDataModule(load, **options)


def _labels(parts: list[Array], sizes: list[int]) -> tuple[Labels, tuple[str, ...]]:
    """Labels and class names, or a warning: none of several values for each image."""
    if [part.size for part in parts] == sizes:
        return number_classes([str(label) for part in parts for label in part.reshape(-1).tolist()]), ()
    found = [part.shape for part in parts]
    return (None, ()), (f"labels of the shapes {found} for {sizes} images are left out",) if parts else ()


def _read(path: Path, keys: Keys | None) -> tuple[dict[str, Array], dict[str, Array]]:
    """Images and labels by split; without splits, all are of train."""
    match path.suffix.lower():
        case ".npy":
            return {"train": np.load(path, mmap_mode="c", allow_pickle=False)}, {}
        case ".npz":
            return _from_npz(path, keys)
        case ".csv":
            return _from_csv(path)
    raise UsageError("expected a file .npz, .npy or .csv")


def _from_npz(path: Path, keys: Keys | None) -> tuple[dict[str, Array], dict[str, Array]]:
    """Images and labels by split; without splits, all are of train."""
    with np.load(path, allow_pickle=False) as members:
        names = list(members)
        known = [roles for roles in KNOWN_KEYS if {roles.get("images"), roles.get("train_images")} & set(names)]
        best = max(known, key=lambda roles: len(set(roles.values()) & set(names)), default={})
        roles = keys or best or ({"images": names[0]} if len(names) == 1 else {})
        missing = [name for name in (keys or {}).values() if name not in names]
        if missing or not roles:
            raise UsageError(
                f"it has the arrays {', '.join(names)}, {f'not {missing[0]}' if missing else 'of unknown meaning'}\n"
                "Set data.keys={images: NAME, labels: NAME} (or train_images, train_labels, val_images, ...)"
            )

        def arrays(what: str) -> dict[str, Array]:
            chosen = {role.removesuffix(what).rstrip("_") or "train": name for role, name in roles.items()
                      if role.endswith(what)}  # fmt: skip
            return {split: members[name] for split, name in chosen.items() if name in names}

        return arrays("images"), arrays("labels")


def _from_csv(path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """A row for each image; a header may name a column of labels, as in `label,pixel0,pixel1,...`.

    Without a header, the first is that if the others make a square.
    """
    with path.open(newline="") as file:
        header = next(csv.reader(file))
    has_header = not all(re.fullmatch(r"\s*[-+]?[\d.][-+.\deE]*\s*", cell) for cell in header)
    table = np.loadtxt(path, np.float32, delimiter=",", skiprows=int(has_header), ndmin=2)
    label = next((i for i, name in enumerate(header) if has_header and name.strip().lower() in LABEL_COLUMNS), None)
    if not has_header and math.isqrt(len(header) - 1) ** 2 == len(header) - 1:
        label = 0
    pixels = table if label is None else np.delete(table, label, axis=1)
    if (pixels == pixels.round()).all() and pixels.min() >= 0 and pixels.max() <= 255:
        pixels = pixels.astype(np.uint8)
    return {"train": pixels}, {} if label is None else {"train": table[:, label].astype(np.int64)}


def _to_pixels(images: Array, shape: Sequence[int] | None, levels: tuple[float, float] | None) -> NDArray[np.uint8]:
    """uint8 (N, C, H, W) of an array of any of the layouts and types; itself if it is that."""
    images = _channels_first(images, shape)
    if images.dtype.kind not in "buif":
        raise UsageError(f"an array of {images.dtype}, expected numbers")
    low, high = float(images.min()), float(images.max())
    if not math.isfinite(low + high):
        raise UsageError("some numbers are not finite")
    black, white = levels or (0, 255 if images.dtype.kind in "ui" and high > 1 else 1)
    if levels is None and not (black <= low and high <= white):
        raise UsageError(
            f"{images.dtype} from {low:g} to {high:g}, expected 0 to {white}\n"
            f"Set data.range=[BLACK,WHITE], here perhaps [{math.floor(low)},{math.ceil(high)}]"
        )
    if images.dtype == np.uint8 and (black, white) == (0, 255):
        return np.ascontiguousarray(images)
    pixels = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), _CHUNK):
        chunk = (images[start : start + _CHUNK].astype(np.float32) - black) * (255 / (white - black))
        pixels[start : start + _CHUNK] = chunk.clip(0, 255).round()
    return pixels


def _channels_first(images: Array, shape: Sequence[int] | None) -> Array:
    """A view (N, C, H, W)."""
    inner = images.shape[1:]
    side = math.isqrt(math.prod(inner))
    if shape is None and len(inner) == 1 and side**2 == inner[0]:
        shape = (1, side, side)
    if not len(images) or not len(inner):
        raise UsageError(f"an array of the shape {images.shape}, expected images")
    if shape is not None and len(shape) == 3 and math.prod(inner) == math.prod(shape):
        channels, height, width = shape
        if inner == (height, width, channels) and channels > 1:
            return np.moveaxis(images, -1, 1)
        return images.reshape(-1, channels, height, width)
    if len(inner) == 2 and shape is None and (inner[1] > 4 or inner[0] == inner[1]):  # (H, W, 3) is one picture
        return images[:, None]
    first, last = (len(inner) == 3 and inner[i] in (1, 3, 4) for i in (0, -1))
    if shape is None and first != last:
        return images if first else np.moveaxis(images, -1, 1)
    raise UsageError(
        f"an array of the shape {images.shape}{'' if shape is None else f', not of images {list(shape)}'}\n"
        "Set data.shape=[C,H,W] to the channels, height and width of one image"
    )
