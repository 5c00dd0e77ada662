"""Atomic creation of folders: complete or absent, also when several processes create the same one."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vae_lab.utils.files import fsync_folder

_BUILDING = ".building-"  # prefix of temporary folders, followed by a random name
_DAY = 86_400.0


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Create a temporary folder in `parent`; removed on exit unless published. Raises OSError."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    temporary = parent / f"{_BUILDING}{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_folder(temporary: Path, final: Path, is_whole: Callable[[Path], bool]) -> None:
    """Rename `temporary` to `final` atomically; a complete `final` is kept. Raises OSError."""
    if final.exists() and not is_whole(final):
        # Renamed first: open files stay valid, and no process opens a partly removed folder.
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
    """Remove the temporary folders of killed processes, after a day without changes."""
    for folder in parent.glob(f"{_BUILDING}*"):
        with suppress(FileNotFoundError):  # another process may remove it at the same time
            if time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir())) > _DAY:
                shutil.rmtree(folder, ignore_errors=True)
