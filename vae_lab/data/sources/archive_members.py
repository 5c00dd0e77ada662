"""Iteration over the members of a zip or tar; only damage is checked here, not names or kinds."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, BinaryIO, NamedTuple

PIECE = 2**20  # maximum bytes per read
RATIO, ALLOWANCE = 100, 100_000_000  # maximum unpacked size: RATIO times the archive's size, plus ALLOWANCE bytes

# Exceptions of the readers on damaged archives; NotImplementedError: unknown compression method.
_READ_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(NotImplementedError, RuntimeError, ValueError, LookupError, OverflowError, MemoryError),
)
_DECOMPRESSORS: tuple[tuple[bytes, Callable[[BinaryIO], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)


class BadArchiveError(Exception):
    """The archive is rejected; the message is the reason."""


class Member(NamedTuple):
    """The header of one member, as stated by the archive."""

    name: str
    kind: str  # "file", "folder", or another kind in words
    size: int
    open: Callable[[], IO[bytes]]


def iter_members(file: BinaryIO) -> Iterator[Member]:
    """Yield the members in order; each must be read before the next is requested. Raises BadArchiveError."""
    most = RATIO * os.fstat(file.fileno()).st_size + ALLOWANCE
    start = file.read(6)  # by content, not suffix: browsers may decompress a .gz but keep its name
    file.seek(0)
    with reject_damaged():
        if start.startswith(b"PK"):
            yield from _zip_members(file, most)
        else:
            unpacked = next((unpack(file) for magic, unpack in _DECOMPRESSORS if start.startswith(magic)), file)
            yield from _tar_members(_Bounded(unpacked, most))


@contextmanager
def reject_damaged(what: str = "it") -> Iterator[None]:
    """Convert the standard library's exceptions for damaged archives to BadArchiveError."""
    try:
        yield
    except _READ_ERRORS as error:
        raise BadArchiveError(f"{what} is damaged ({error or type(error).__name__})") from error


def _zip_members(file: BinaryIO, most: int) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        _check_count(file, archive)
        if sum(info.file_size for info in infos) > most:
            raise BadArchiveError(f"it unpacks to more than {RATIO} times its size; pictures never compress that far")
        for info in infos:
            _check_name(archive, info)
            yield Member(info.orig_filename, _zip_kind(info), info.file_size, lambda info=info: archive.open(info))  # type: ignore[misc]


def _check_count(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Raise if the central directory lacks members: a damaged length field in it can hide those that follow."""
    file.seek(-22 - len(archive.comment), os.SEEK_END)
    claimed = struct.unpack_from("<H", file.read(12), 10)[0]
    if claimed not in (0xFFFF, len(archive.infolist())):  # 0xFFFF: the count does not fit this field
        raise BadArchiveError(f"it is damaged ({len(archive.infolist())} members of {claimed})")


def _check_name(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Raise BadZipFile unless both copies of the name agree: a damaged suffix would hide a picture."""
    with suppress(NotImplementedError):  # an unknown compression method matters only for members that are unpacked
        if _zip_kind(info) == "file":
            archive.open(info).close()


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = stat.S_IFMT(info.external_attr >> 16)  # Unix mode; 0 for archives made on other systems
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a device"
    if info.flag_bits & 1:
        return "encrypted"
    return "folder" if info.is_dir() else "file"


def _tar_members(stream: _Bounded) -> Iterator[Member]:
    with tarfile.TarFile(fileobj=stream) as archive:  # type: ignore[arg-type]
        while (info := archive.next()) is not None:
            yield Member(info.name, _tar_kind(info), info.size, lambda info=info: archive.extractfile(info))  # type: ignore
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all of them in memory
        # tarfile mistakes a damaged header for the end, which must be a block of zeros.
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise BadArchiveError(f"it is damaged or cut short at byte {archive.offset}")
        while stream.read(PIECE):  # to the end, where compressed archives have their checksum
            pass


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "a symbolic link" if info.issym() else "a hard link"
    if info.isdir():
        return "folder"
    if info.issparse():
        return "a sparse file"
    return "file" if info.isreg() else "a device"


class _Bounded:
    """A stream that raises BadArchiveError past `most` bytes or on a read of more than PIECE bytes.

    tarfile would read a name of any length stated by a header into memory.
    """

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream, self._most = stream, most

    def read(self, size: int) -> bytes:
        if not 0 <= size <= PIECE:
            raise BadArchiveError(f"it is damaged (a header of {size} bytes)")
        self._check(self._stream.tell() + size - PIECE)
        return self._stream.read(size)

    def seek(self, position: int) -> int:
        self._check(position)
        return self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()

    def _check(self, position: int) -> None:
        if position > self._most:
            raise BadArchiveError(f"it unpacks to more than {RATIO} times its size; pictures never compress that far")
