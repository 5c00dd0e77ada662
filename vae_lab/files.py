"""Files that appear whole under their name, or not at all; and what a power cut leaves of them."""

import os
from pathlib import Path
from typing import IO, Any


def write_whole(path: Path, data: bytes, flush: bool = True) -> None:
    """Write a temporary file beside `path`, then rename it over what was there.

    flush: have it on the disk first, or a power cut may leave an empty file under the name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if flush:
                sync(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(file: IO[Any]) -> None:
    """Have what was written so far on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut; Windows opens no folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
