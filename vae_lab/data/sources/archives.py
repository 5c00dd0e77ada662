"""Pictures in a zip or tar, unpacked once inside the cache folder."""

from __future__ import annotations

import hashlib
import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePath

from vae_lab.utils.errors import UsageError

RATIO, ALLOWANCE = 100, 100_000_000  # maximum unpacked size: RATIO times the archive's size, plus ALLOWANCE bytes
# Of the readers on damaged or hostile archives, and of writing; RuntimeError: encrypted, or an unknown compression.
_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(RuntimeError, ValueError, LookupError, OverflowError, MemoryError),
)


def unpack_archive(archive: Path, cache_dir: Path) -> Path:
    """Unpack a zip or tar into a folder of `cache_dir`, unless done before; returns it. Raises UsageError."""
    stat = archive.stat()
    key = hashlib.sha256(repr((archive.resolve(), stat.st_size, stat.st_mtime_ns)).encode()).hexdigest()
    folder = cache_dir / f"unpacked-{key}"
    if folder.is_dir():
        return folder
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=cache_dir) as temporary:
            _extract(archive, most=RATIO * stat.st_size + ALLOWANCE, to=Path(temporary, "pictures"))
            try:
                Path(temporary, "pictures").rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process finished first
                    raise
    except _ERRORS as error:
        reason = str(error).partition(":\n")[0] or type(error).__name__  # tarfile lists every format it tried
        raise UsageError(
            f"{archive}: cannot be unpacked into data.cache_dir={cache_dir} ({reason}).\n"
            "Expected an intact zip or tar of pictures, and a writable data.cache_dir with space for them.\n"
            "If you trust it, unpack it yourself and set data.folder to that folder."
        ) from error
    return folder


def _extract(archive: Path, most: int, to: Path) -> None:
    """Unpack at most `most` bytes. Raises ValueError before anything is written if there are more."""
    to.mkdir()
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as packed_zip:
            _check_members(((info.filename, info.file_size) for info in packed_zip.infolist()), most)
            packed_zip.extractall(to)
    else:
        with tarfile.open(archive) as packed_tar:
            _check_members(((info.name, info.size) for info in packed_tar), most)
            packed_tar.extractall(to, filter="data")  # refuses links that lead elsewhere, devices and pipes


def _check_members(members: Iterable[tuple[str, int]], most: int) -> None:
    """Raise ValueError for a name that leads elsewhere or too many bytes: at a header, before its data is read."""
    total = 0
    for name, size in members:
        total += size
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise ValueError(f"its member {name!r} leads out of its folder")
        if total > most:
            raise ValueError(f"it unpacks to more than {RATIO} times its size; pictures never compress that far")
