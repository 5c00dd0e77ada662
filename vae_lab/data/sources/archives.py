"""Pictures in a zip or tar, unpacked once inside the cache folder; nothing else is written.

An archive with members that a folder of pictures does not need (links, devices, absolute names) is rejected as a
whole. The unpacked pictures may be deleted at any time; the next run unpacks them again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

from vae_lab.data.atomic_folders import publish_folder, temporary_folder
from vae_lab.data.decode import SUFFIXES
from vae_lab.data.progress import with_progress
from vae_lab.data.regular_files import open_file
from vae_lab.data.sources.archive_members import PIECE, BadArchiveError, Member, iter_members, reject_damaged
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import write_atomically

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_MEMBERS = 1_000_000
MAX_TOTAL = 50_000_000_000  # bytes of all pictures
_FORMAT = 1  # increase it when the files below change: older unpacked folders are then ignored
_INDEX, _PICTURES = "index.json", "pictures"


class _Size(NamedTuple):
    """Totals of the unpacked pictures, to detect a changed folder."""

    files: int
    bytes: int


class _Picture(NamedTuple):
    """A member to unpack, and its relative path as parts."""

    member: Member
    parts: tuple[str, ...]


def is_archive(path: Path) -> bool:
    """Whether the path has an archive suffix and is not a folder."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES) and path.exists() and not path.is_dir()


def unpack_archive(archive: Path, cache_dir: Path, max_bytes: int) -> Path:
    """Unpack the archive, unless done before, and return the folder; max_bytes: per picture. Raises UsageError."""
    try:
        stat = archive.stat()
        key = repr((_FORMAT, str(archive.resolve()), stat.st_size, stat.st_mtime_ns))
        folder = cache_dir / f"unpacked-{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}"
        if not _is_whole(folder):
            _build(archive, folder, max_bytes, stat.st_mtime_ns)
    except BadArchiveError as error:
        raise UsageError(
            f"{archive}: {error}.\nExpected an archive of pictures and of folders with pictures.\n"
            "If you trust it, unpack it yourself and set data.folder to that folder."
        ) from error
    except OSError as error:
        raise UsageError(
            f"{archive}: cannot be unpacked into data.cache_dir={cache_dir} ({error.strerror or error}).\n"
            "Expected a writable folder with space for its pictures; set data.cache_dir to one."
        ) from error
    return _without_wrapper(folder / _PICTURES)


def _build(archive: Path, folder: Path, max_bytes: int, mtime_ns: int) -> None:
    with temporary_folder(folder.parent) as temporary:
        size = _unpack(archive, temporary / _PICTURES, max_bytes, mtime_ns)
        write_atomically(temporary / _INDEX, json.dumps(size._asdict()).encode())
        publish_folder(temporary, folder, _is_whole)


def _unpack(archive: Path, folder: Path, max_bytes: int, mtime_ns: int) -> _Size:
    """Write the pictures to `folder`, with the archive's modification time, so that their cache key never changes."""
    folder.mkdir()
    files = total = 0
    with _opened(archive) as file:
        for picture in with_progress(_pictures(iter_members(file), max_bytes), None, f"Unpacking {archive.name}"):
            files, total = files + 1, total + picture.member.size
            if total > MAX_TOTAL:
                raise BadArchiveError(f"its pictures are more than {MAX_TOTAL} bytes")
            path = folder.joinpath(*picture.parts)
            _write(picture.member, path)
            os.utime(path, ns=(mtime_ns, mtime_ns))
    if not files:
        raise BadArchiveError(f"it holds no picture ({', '.join(suffix[1:] for suffix in SUFFIXES)})")
    return _Size(files, total)


@contextmanager
def _opened(archive: Path) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_file(archive))
        except OSError as error:
            raise BadArchiveError(f"it cannot be read ({error.strerror or error})") from error
        yield file


def _pictures(found: Iterator[Member], max_bytes: int) -> Iterator[_Picture]:
    """Yield the members that are visible pictures. Raises BadArchiveError for a member that is not allowed."""
    for number, member in enumerate(found, 1):
        if number > MAX_MEMBERS:
            raise BadArchiveError(f"it has more than {MAX_MEMBERS} members")
        if problem := _problem(member):
            raise BadArchiveError(f"its member {member.name!r} {problem}")
        parts = tuple(part for part in _slashes(member.name).split("/") if part not in ("", "."))
        if member.kind != "file" or not _is_picture(parts):
            continue
        if member.size > max_bytes:
            raise BadArchiveError(
                f"its member {member.name!r} has {member.size} bytes, more than data.max_bytes={max_bytes}"
            )
        yield _Picture(member, parts)


def _problem(member: Member) -> str:
    """Why the member is not allowed; empty if it is."""
    name = _slashes(member.name)
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "is an absolute name"
    if ".." in name.split("/"):
        return "leads out of its folder"
    if "\0" in name:
        return "has a zero byte in its name"
    return "" if member.kind in ("file", "folder") else f"is {member.kind}"


def _slashes(name: str) -> str:
    return name.replace("\\", "/")  # archives made on Windows may contain backslashes


def _is_picture(parts: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return bool(parts) and not hidden and parts[-1].lower().endswith(SUFFIXES)


def _write(member: Member, path: Path) -> None:
    """Write the member to a new file. Raises BadArchiveError unless its size is the stated one."""
    what, written = f"its member {member.name!r}", 0
    with reject_damaged(what):
        source = member.open()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb")
    except (FileExistsError, NotADirectoryError) as error:
        raise BadArchiveError(f"{what} has the same path as another member") from error
    with source, file:
        while block := _block(source, what):
            written += len(block)
            if written > member.size:
                break
            file.write(block)
    if written != member.size:
        raise BadArchiveError(f"{what} does not have the {member.size} bytes that its header states")


def _block(source: IO[bytes], what: str) -> bytes:
    with reject_damaged(what):  # only around the read: errors of writing are not damage
        return source.read(PIECE)


def _is_whole(folder: Path) -> bool:
    try:
        expected = _Size(**json.loads((folder / _INDEX).read_text("utf-8")))
        sizes = [
            (Path(where) / name).stat().st_size for where, _, names in os.walk(folder / _PICTURES) for name in names
        ]
    except (OSError, ValueError, TypeError):
        return False  # missing or damaged: either way it is unpacked again
    return _Size(len(sizes), sum(sizes)) == expected


def _without_wrapper(folder: Path) -> Path:
    """The single top-level folder, if there is one: most programs add it when packing."""
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder
