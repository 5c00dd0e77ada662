"""Labels of pictures: from the names of their folders, or from a table of file names and labels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from vae_lab.config.validation import names_to_choose
from vae_lab.data.decode import SUFFIXES
from vae_lab.utils.errors import UsageError

FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_id", "path")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target")
Labels = tuple[Tensor | None, tuple[str, ...]]  # int64 (N,), and the names of the classes; None and () without labels


def number_classes(names: Sequence[str]) -> Labels:
    """The label of each class name; classes are sorted, as numbers if all of them are."""
    classes = sorted(set(names))
    if all(name.removeprefix("-").isdecimal() for name in classes):
        classes.sort(key=int)
    number = {name: label for label, name in enumerate(classes)}
    return torch.tensor([number[name] for name in names], dtype=torch.int64), tuple(classes)


def labels_of_folders(names: Sequence[str]) -> Labels:
    """The first folder of each relative file name, if every one has one."""
    if not all("/" in name for name in names):
        return None, ()
    return number_classes([name.partition("/")[0] for name in names])


def read_labels(file: str, folder: Path, names: Sequence[str], label_name: str | None) -> Labels:
    """The labels of the files `names` in `folder` by a table.

    file: csv, tsv or jsonl with a column of file names, or CelebA's list of attributes; found as a path, in `folder`,
    or in each of its subfolders. label_name: the column of the labels. Names match with or without folders and suffix.
    Raises UsageError.
    """
    paths = [path for path in (Path(file).expanduser(), folder / file) if path.is_file()][:1]
    paths = paths or sorted(folder.glob(f"*/{file}"))
    if not paths:
        raise UsageError(
            f"data.labels={file}: no such file, nor in {folder}\n"
            "Expected a csv, tsv or jsonl with a file name and a label in each line."
        )
    table: dict[str, str] = {}
    for path in paths:
        inside = f"{path.parent.name}/" if len(paths) > 1 else ""
        table |= {inside + name: label for name, label in _read_table(path, label_name)}
    by_base = {PurePosixPath(name).name: label for name, label in table.items()}
    table = table | by_base if len(by_base) == len(table) else table
    labels = [next((table[key] for key in _keys(name) if key in table), None) for name in names]
    missing = [name for name, label in zip(names, labels, strict=True) if label is None]
    if missing:
        raise UsageError(
            f"data.labels={file}: {len(missing)} of {len(names)} pictures have no label in it, such as {missing[0]}\n"
            f"Its names are such as {next(iter(table), '(none)')}; complete it, or move these pictures elsewhere."
        )
    return number_classes([label for label in labels if label is not None])


def _keys(name: str) -> Iterable[str]:
    path = PurePosixPath(name)
    return name, name.partition("/")[2], path.name, str(path.with_suffix("")), path.stem


def _read_table(path: Path, label_name: str | None) -> list[tuple[str, str]]:
    """File name and label of each line that has both."""
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            header = list(dict.fromkeys(key for row in rows for key in row))
        else:
            header, *cells = _cells(text)
            rows = [dict(zip(header, row, strict=False)) for row in cells]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UsageError(
            f"data.labels={path}: cannot be read ({error}).\n"
            "Expected a csv, tsv or jsonl of file names and labels, in UTF-8."
        ) from error
    names = next((name for name in FILE_COLUMNS if name in header), header[0] if header else "")
    others = [name for name in header if name != names]
    column = label_name or next((name for name in LABEL_COLUMNS if name in others), others[0] if others else "")
    if column not in others or (label_name is None and column not in LABEL_COLUMNS and len(others) > 1):
        found = f"no column {label_name}" if label_name else "which column has the labels is not clear"
        raise UsageError(f"data.labels={path}: {found}{names_to_choose(label_name or '', others, 'data.label_name=')}")
    return [(str(row[names]), str(row[column])) for row in rows if row.get(names) and row.get(column) not in (None, "")]


def _cells(text: str) -> list[list[str]]:
    """The header and the rows of a table whose cells are separated by commas, semicolons, tabs or blanks."""
    first = text.partition("\n")[0]
    separator = next((mark for mark in ",\t;" if mark in first), None)
    if separator is None:
        rows = [line.split() for line in text.splitlines()]
    else:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    rows = [row for row in rows if row]
    if len(rows) > 1 and len(rows[0]) == 1 and rows[0][0].isdecimal():  # CelebA: the number of rows
        del rows[0]
    if not rows:
        raise ValueError("it is empty")
    if PurePosixPath(rows[0][0]).suffix.lower() in SUFFIXES:  # no header
        return [["file_name", "label", *map(str, range(2, len(rows[0])))], *rows]
    if len(rows) > 1 and len(rows[0]) == len(rows[1]) - 1:  # CelebA: the names have no header
        rows[0].insert(0, "file_name")
    return rows
