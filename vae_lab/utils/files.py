"""Files that appear whole under their name, or not at all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, data: bytes, flush: bool = True) -> None:
    """Write a temporary file beside `path`, then rename it over what was there.

    flush: have it on the disk first, or a power cut may leave an empty file under the name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if flush:
                fsync(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def fsync(file: IO[Any]) -> None:
    """Have what was written so far on the disk."""
    file.flush()
    os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut; Windows opens no folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a JSON file as a whole; numbers that are not finite become null, which every reader takes."""
    write_atomically(path, (json.dumps(finite(content), indent=2, allow_nan=False) + "\n").encode())


def finite(value: Any) -> Any:
    """The same with None for what JSON cannot say."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
