"""A lock on the run directory: one process at a time trains a run."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from vae_lab.utils.errors import UsageError

TIMEOUT = 3.0  # seconds for the child processes of a killed process to exit


@contextmanager
def exclusive_lock(run: Path, seconds: float = TIMEOUT) -> Iterator[None]:
    """Lock a run directory. UsageError: another process still holds the lock after `seconds`."""
    folder = _try_lock(run, seconds)
    if folder is False:
        raise UsageError(
            f"{run}: another process is training this run\nwait until it ends, or stop it, then resume the run"
        )
    try:
        yield
    finally:
        if folder is not None:
            os.close(folder)


def is_locked(run: Path) -> bool:
    try:
        with exclusive_lock(run, seconds=0.0):
            return False
    except UsageError:
        return True


def _try_lock(run: Path, seconds: float) -> int | Literal[False] | None:
    """The open directory that holds the lock; False if another process holds it, None if locks are not supported."""
    if "LOCAL_RANK" in os.environ:  # a child of the process that holds it
        return None
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    folder, end = os.open(run, os.O_RDONLY), time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return folder
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:  # a file system without locks
                os.close(folder)
                return None
        if time.monotonic() >= end:
            os.close(folder)
            return False
        time.sleep(0.05)
