"""Atomic and durable file writes, and valid JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, data: bytes | memoryview, flush: bool = True) -> None:
    """Write the data into `atomic_file`."""
    with atomic_file(path, flush) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path, flush: bool = True) -> Iterator[IO[bytes]]:
    """A temporary file beside `path`, renamed to `path` at the end unless an exception was raised: an OSError names it.

    flush: wait for the disk; without it a power cut may leave an empty file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            if flush:
                fsync(file)
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write does not name its file
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if flush:
        fsync_folder(path.parent)


def fsync(file: IO[Any]) -> None:
    """Flush an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut; does nothing on Windows, which cannot open a directory."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically; non-finite numbers become null, which every parser accepts."""
    write_atomically(path, (json.dumps(_finite(content), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if it is missing or truncated, as after a kill."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def as_number(value: Any) -> float | None:
    """The finite number of a JSON or CSV file, also one that is written as text; None: there is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _finite(value: Any) -> Any:
    """The value with None for non-finite numbers, which JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
