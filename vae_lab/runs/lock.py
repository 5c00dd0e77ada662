"""One process to a run."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from vae_lab.utils.errors import UsageError

TIMEOUT = 3.0  # for what a killed process leaves behind to end


@contextmanager
def exclusive_lock(run: Path, seconds: float = TIMEOUT) -> Iterator[None]:
    """Keep other processes from going on with the same run. UsageError: one is still at it after so long."""
    folder = _try_lock(run, seconds)
    if folder is False:
        raise UsageError(
            f"{run}: another process is training this run\nwait until it ends, or stop it, and resume it then"
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
    """An open folder that holds the lock; False where another process holds it, None where there are no locks."""
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
