"""Files that others made: a regular file or none, no more bytes than were agreed, no longer than was agreed.

A named pipe would block for ever, a device has no end, and a link may lead to either.
"""

from __future__ import annotations

import io
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotAFileError(OSError):
    """What has the name is no regular file; the message says what it is."""


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """A regular file, opened for reading; symbolic links are followed. Raises OSError, NotAFileError among them."""
    _check_regular(path.stat().st_mode)  # before it is opened: to open a device may already do something
    with open(path, "rb", opener=_without_waiting) as file:
        _check_regular(os.fstat(file.fileno()).st_mode)  # it may have been exchanged in between
        yield file


def file_size(file: BinaryIO) -> int:
    """The bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer would wait


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotAFileError(next((name for is_kind, name in _KINDS if is_kind(mode)), "no regular file"))


class TimedBytes(io.BytesIO):
    """Bytes that can be read until `seconds` of this thread's processor time are over, then TimeoutError.

    Pillow's decoders ask for bytes between pieces of their work, so what would take minutes ends here.
    Processor time: a paused process and a busy machine are no fault of the file.
    """

    def __init__(self, content: bytes, seconds: float) -> None:
        super().__init__(content)
        self._deadline = time.thread_time() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes."""
        if time.thread_time() > self._deadline:
            raise TimeoutError("too slow")
        return super().read(size)
