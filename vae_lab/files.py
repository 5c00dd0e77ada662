"""Files that appear whole under their name, or not at all."""

import os
from pathlib import Path


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
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
