"""Pictures in parquet files as Hugging Face stores them, decoded once and cached."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from vae_lab.config.validation import names_to_choose
from vae_lab.data.cache import decode_cached, file_stamp
from vae_lab.data.datamodule import BatchOptions, ImageDataModule
from vae_lab.data.decode import Channels, Fit, PictureOptions
from vae_lab.data.images import SPLITS, DecodedImages, complete_splits
from vae_lab.data.labels import LABEL_COLUMNS, Labels, number_classes
from vae_lab.data.sets.pictures import SPLIT_FOLDERS, OnBadImage, list_warnings, readable
from vae_lab.utils.errors import UsageError, require_extra

_ROWS = 64  # pictures read at a time


def parquet(
    files: str | list[str],
    image_size: int | tuple[int, int],
    channels: Channels = 3,
    fit: Fit = "pad",
    background: str = "white",
    max_pixels: int = 50_000_000,
    range: tuple[float, float] | None = None,
    image_name: str | None = None,
    label_name: str | None = None,
    on_bad_image: OnBadImage = "stop",
    val_size: float = 0.1,
    test_size: float = 0.1,
    cache_dir: str = "~/.cache/vae_lab",
    root: str | None = None,
    **options: Unpack[BatchOptions],
) -> ImageDataModule:
    """The pictures in parquet files: a column of encoded pictures (bytes, or {bytes, path}), and one of labels.

    files: a folder, names or patterns; those that begin with train, validation or test are that split. image_size to
    range: see PictureOptions. image_name, label_name: the columns, where there are several. val_size, test_size:
    fractions or numbers of the training images, where there is no such split. Raises UsageError.
    """
    pictures = PictureOptions(image_size, channels, fit, background, max_pixels, range)

    def load() -> DecodedImages:
        paths = _find([files] if isinstance(files, str) else files)
        with _reading(f"data.files={files}"):
            counts, image, labels = _read_columns(paths, image_name, label_name)
        parts = torch.tensor([SPLITS.index(_split(path)) for path in paths]).repeat_interleave(torch.tensor(counts))
        given = {split: (parts == i).nonzero().squeeze(1) for i, split in enumerate(SPLITS)}
        splits = complete_splits(given, val_size, test_size)
        names = [
            f"{path.name}, row {row}," for path, count in zip(paths, counts, strict=True) for row in np.arange(count)
        ]
        stamp = [image, *((str(path), *file_stamp(path)) for path in paths)]
        decoded = decode_cached(
            names, _contents(paths, image), stamp, pictures, Path(cache_dir).expanduser().absolute()
        )
        splits = dict(readable(names, splits, decoded, on_bad_image, f"data.files={files}"))
        warnings = list_warnings(decoded.peak)
        return DecodedImages(decoded.pixels, splits, *labels, tuple(decoded.unreadable), warnings=warnings)

    return ImageDataModule(load, **options)


def _find(patterns: Sequence[str]) -> list[Path]:
    """The files of the patterns, in the order of their names."""
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern).expanduser().absolute()
        inside = path.rglob("*.parquet") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - of any root
        found |= {file for file in inside if file.is_file()}
    if not found:
        raise UsageError(
            f"data.files={', '.join(patterns)}: there is no such file\nExpected parquet files, a folder of them, or a "
            "pattern in quotes: 'data.files=\"data/train-*.parquet\"'"
        )
    return sorted(found)


def _split(path: Path) -> Any:
    """The split of train-00000-of-00001.parquet, or of a file in a folder of the split's name."""
    words = [re.split(r"[-._]", name.lower())[0] for name in (path.name, path.parent.name)]
    return next((SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS), "train")


def _read_columns(
    paths: Sequence[Path], image_name: str | None, label_name: str | None
) -> tuple[list[int], str, Labels]:
    """The number of rows of each file, the name of the column of pictures, and the labels."""
    pq = _pyarrow()
    schema = pq.read_schema(paths[0])
    pictures = [field.name for field in schema if "binary" in str(field.type)]
    image = image_name or next(iter(pictures), "")
    known = [name for name in LABEL_COLUMNS if name in schema.names]
    label = label_name or next(iter(known), None)
    for key, name, names in (("image_name", image, pictures), ("label_name", label, schema.names)):
        if name is not None and name not in names:
            found = f"no column {name}" if name else "no column of pictures"
            raise UsageError(f"{paths[0]}: {found}{names_to_choose(name, names or schema.names, f'data.{key}=')}")
    counts = [pq.read_metadata(path).num_rows for path in paths]
    if label is None:
        return counts, image, (None, ())
    values = [value for path in paths for value in pq.read_table(path, columns=[label])[label].to_pylist()]
    info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
    classes = info.get("features", {}).get(label, {}).get("names")
    if classes and all(isinstance(value, int) and 0 <= value < len(classes) for value in values):
        return counts, image, (torch.tensor(values), tuple(classes))
    return counts, image, number_classes([str(value) for value in values])


def _contents(paths: Sequence[Path], image: str) -> Iterator[bytes]:
    """The encoded pictures in order; empty where there is none."""
    for path in paths:
        with _reading(str(path)):
            for batch in _pyarrow().ParquetFile(path).iter_batches(_ROWS, columns=[image]):
                for value in batch.column(0).to_pylist():
                    yield (value.get("bytes") if isinstance(value, dict) else value) or b""


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Raises UsageError for what pyarrow raises on a damaged file."""
    try:
        yield
    except UsageError:
        raise
    except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"{where}: cannot be read ({reason}).\nExpected intact parquet files with a column of pictures."
        ) from error


def _pyarrow() -> Any:
    require_extra("parquet", "pyarrow", where="data=parquet")
    import pyarrow.parquet

    return pyarrow.parquet
