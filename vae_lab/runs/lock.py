"""A lock on the run directory: one process at a time trains a run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vae_lab.utils.errors import UsageError

TIMEOUT = 3.0  # seconds for the child processes of a killed process to exit


@contextmanager
def exclusive_lock(run: Path, seconds: float = TIMEOUT) -> Iterator[None]:
    """Lock a run directory. UsageError: another process still holds the lock after `seconds`."""
    if os.name != "posix" or "LOCAL_RANK" in os.environ:  # a child of the process that holds it
        yield
        return
    import fcntl

    folder, end = os.open(run, os.O_RDONLY), time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    found = "another process is training this run"
                    raise UsageError(f"{run}: {found}\nwait until it ends, or stop it, then resume the run") from error
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(folder)


def is_locked(run: Path) -> bool:
    try:
        with exclusive_lock(run, seconds=0.0):
            return False
    except UsageError:
        return True
