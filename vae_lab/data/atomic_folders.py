"""Folders that appear whole under their name, or not at all, however many processes make them at once."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vae_lab.utils.files import fsync_folder

_BUILDING = ".building-"  # and a random name: a folder in the making
_DAY = 86_400.0


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder to fill and to publish, gone afterwards if it was not. Raises OSError."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    temporary = parent / f"{_BUILDING}{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, final: Path, is_whole: Callable[[Path], bool]) -> None:
    """Give a filled folder its name in one step; a whole one that is already there stays. Raises OSError."""
    if final.exists() and not is_whole(final):
        # By a rename: whoever has its files open keeps them, and no one opens it half removed.
        damaged = final.rename(f"{temporary}-damaged")
        shutil.rmtree(damaged, ignore_errors=True)
    fsync_folder(temporary)
    try:
        temporary.rename(final)
    except OSError:
        if not is_whole(final):
            raise
    fsync_folder(final.parent)


def _remove_abandoned(parent: Path) -> None:
    """Remove what killed processes left, once nothing in it changed for a day."""
    for folder in parent.glob(f"{_BUILDING}*"):
        with suppress(FileNotFoundError):  # another process may be doing the same
            if time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir())) > _DAY:
                shutil.rmtree(folder, ignore_errors=True)
