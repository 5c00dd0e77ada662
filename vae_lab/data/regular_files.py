"""Safe reading of untrusted files: regular files only, with a limit on decoding time.

A named pipe would block for ever, a device has no end, and a symbolic link may lead to either.
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


class NotARegularFileError(OSError):
    """The path is not a regular file; the message says what it is."""


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; follows symbolic links. Raises OSError, or its subclass NotAFileError."""
    _check_regular(path.stat().st_mode)  # before opening, which may have side effects on a device
    with open(path, "rb", opener=_without_waiting) as file:
        _check_regular(os.fstat(file.fileno()).st_mode)  # it may have been replaced in between
        yield file


def file_size(file: BinaryIO) -> int:
    """Size of an open file in bytes."""
    return os.fstat(file.fileno()).st_size


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer would block


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotARegularFileError(next((name for is_kind, name in _KINDS if is_kind(mode)), "an unknown kind of file"))


class TimedBytes(io.BytesIO):
    """Bytes whose `read` raises TimeoutError after `seconds` of this thread's processor time.

    Pillow's decoders read between pieces of their work, so this ends decoding that would take minutes.
    Processor time, because a paused process or a busy machine says nothing about the file.
    """

    def __init__(self, content: bytes, seconds: float) -> None:
        super().__init__(content)
        self._deadline = time.thread_time() + seconds

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() > self._deadline:
            raise TimeoutError("too slow")
        return super().read(size)
