"""Pictures in a zip or tar, unpacked once inside the cache folder."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import zipfile
from pathlib import Path

from vae_lab.data.decode import is_html
from vae_lab.utils.errors import UsageError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
RATIO, ALLOWANCE = 100, 100_000_000  # maximum unpacked size: RATIO times the archive's size, plus ALLOWANCE bytes


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
            pictures = Path(temporary, "pictures")
            _extract(archive, RATIO * stat.st_size + ALLOWANCE, pictures)
            if not folder.is_dir():  # another process may have finished first
                pictures.rename(folder)
    except Exception as error:  # on a damaged file, the readers raise nearly any
        # tarfile lists every format it tried
        reason = "it is an HTML page" if is_html(archive) else str(error).partition(":\n")[0] or type(error).__name__
        raise UsageError(
            f"{archive}: cannot be unpacked into data.cache_dir={cache_dir} ({reason}).\n"
            "Expected an intact zip or tar of pictures, and a writable data.cache_dir with space for them.\n"
            "If you trust it, unpack it yourself and set data.folder to that folder."
        ) from error
    return folder


def _extract(archive: Path, most: int, to: Path) -> None:
    """Unpack into the new folder `to`. Raises ValueError before anything is written if there are more bytes."""
    to.mkdir()
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as packed_zip:
            _check_size(sum(member.file_size for member in packed_zip.infolist()), most)
            packed_zip.extractall(to)  # names that lead elsewhere end inside
    else:
        with tarfile.open(archive) as packed_tar:
            _check_size(sum(member.size for member in packed_tar), most)
            packed_tar.extractall(to, filter="data")  # refuses names and links that lead elsewhere, devices and pipes


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"it unpacks to more than {RATIO} times its size; pictures never compress that far")
