"""The members of a zip or tar, one after the other, as they call themselves: nothing is checked here but damage."""

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

PIECE = 2**20  # bytes read at once
RATIO, ALLOWANCE = 100, 100_000_000  # an archive may unpack to so many times its size, and so many bytes more

# What the readers raise for damaged archives; NotImplementedError for a packing they do not know.
_READ_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError),
    *(NotImplementedError, RuntimeError, ValueError, LookupError, OverflowError, MemoryError),
)
_PACKED: tuple[tuple[bytes, Callable[[BinaryIO], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
)


class BadArchiveError(Exception):
    """The archive is refused; the message is the reason."""


class Member(NamedTuple):
    """What an archive says of one of its members."""

    name: str
    kind: str  # "file", "folder", or what else it is
    size: int
    open: Callable[[], IO[bytes]]


def members(file: BinaryIO) -> Iterator[Member]:
    """Every member in order, to be read before the next one is asked for. Raises BadArchiveError."""
    most = RATIO * os.fstat(file.fileno()).st_size + ALLOWANCE
    start = file.read(6)  # by content: browsers unpack a .gz and keep its name
    file.seek(0)
    with damage_refused():
        if start.startswith(b"PK"):
            yield from _of_zip(file, most)
        else:
            unpacked = next((unpack(file) for magic, unpack in _PACKED if start.startswith(magic)), file)
            yield from _of_tar(_Bounded(unpacked, most))


@contextmanager
def damage_refused(what: str = "it") -> Iterator[None]:
    """Every way in which the standard library says that an archive is damaged is a BadArchiveError."""
    try:
        yield
    except _READ_ERRORS as error:
        raise BadArchiveError(f"{what} is damaged ({error or type(error).__name__})") from error


def _of_zip(file: BinaryIO, most: int) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        _check_count(file, archive)
        if sum(info.file_size for info in infos) > most:
            raise BadArchiveError(f"it unpacks to more than {RATIO} times its size, as no pictures do")
        for info in infos:
            _check_name(archive, info)
            yield Member(info.orig_filename, _zip_kind(info), info.file_size, lambda info=info: archive.open(info))  # type: ignore[misc]


def _check_count(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Raise unless the list of members is as long as it says: a damaged length in it may leave out the next ones."""
    file.seek(-22 - len(archive.comment), os.SEEK_END)
    claimed = struct.unpack_from("<H", file.read(12), 10)[0]
    if claimed not in (0xFFFF, len(archive.infolist())):  # 0xFFFF: more than this number can say
        raise BadArchiveError(f"it is damaged ({len(archive.infolist())} members of {claimed})")


def _check_name(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Raise BadZipFile unless both places with the member's name agree: a damaged one may look like no picture."""
    with suppress(NotImplementedError):  # an unknown packing matters only where it is to be unpacked
        if _zip_kind(info) == "file":
            archive.open(info).close()


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = stat.S_IFMT(info.external_attr >> 16)  # of Unix, 0 where another system packed it
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a device"
    if info.flag_bits & 1:
        return "encrypted"
    return "folder" if info.is_dir() else "file"


def _of_tar(stream: _Bounded) -> Iterator[Member]:
    with tarfile.TarFile(fileobj=stream) as archive:  # type: ignore[arg-type]
        while (info := archive.next()) is not None:
            yield Member(info.name, _tar_kind(info), info.size, lambda info=info: archive.extractfile(info))  # type: ignore
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        # tarfile takes a damaged header for the end, which is a block of zeros.
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise BadArchiveError(f"it is damaged or cut short at byte {archive.offset}")
        while stream.read(PIECE):  # to the end, where a packed one has its checksum
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
    """A stream that ends with an error after `most` bytes and is never asked for many at once.

    tarfile reads names of any length that a header claims into memory.
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
            raise BadArchiveError(f"it unpacks to more than {RATIO} times its size, as no pictures do")
