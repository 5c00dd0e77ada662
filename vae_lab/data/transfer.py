"""Atomic download of one file, with resuming and retries.

Received bytes are kept in `<name>.part`, which is renamed once it has been checked. Imports no torch.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from vae_lab.utils.files import fsync

if sys.platform != "win32":
    import fcntl

USER_AGENT = "vae_lab (python -m vae_lab.data.download)"
MAX_BYTES = 2 * 2**30
_BUSY = (408, 425, 429)  # retried, as any 5xx
_BLOCK = 2**16

Check = Callable[[Path], str]  # the problem with a file; empty if it is valid


@dataclass(frozen=True)
class RequestPolicy:
    """Timeouts and retries in seconds, and the maximum size of a response."""

    timeout: float = 20.0  # without receiving a byte
    attempts: int = 4
    first_wait: float = 1.0  # before the second attempt, doubled for each further one
    longest_wait: float = 600.0  # the transfer fails if the server's Retry-After is longer
    delay: float = 0.0  # after every attempt, successful or not
    max_bytes: int = MAX_BYTES


class TransferError(Exception):
    """The file could not be downloaded; the message is the reason."""


class NotFoundError(TransferError):
    """HTTP 404."""


class _TryAgainError(Exception):
    """A transient failure; `wait`: the server's Retry-After in seconds, or 0."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def transfer(url: str, final: Path, check: Check, policy: RequestPolicy) -> None:
    """Download the file, resuming from its `.part`. Raises TransferError, or OSError if it cannot be written."""
    wait = policy.first_wait
    for attempt in range(1, policy.attempts + 1):
        try:
            with _partial(final.with_name(f"{final.name}.part")) as part:
                _attempt(url, part, check, policy)
                part.replace(final)
            return
        except _TryAgainError as failure:
            if attempt == policy.attempts or failure.wait > policy.longest_wait:
                raise TransferError(str(failure)) from failure
            time.sleep(max(wait, failure.wait))
            wait *= 2
        finally:
            time.sleep(policy.delay)


@contextmanager
def _partial(shared: Path) -> Iterator[Path]:
    """The partial file to resume; a temporary one while another process holds the shared one."""
    with _locked(shared) as mine:
        part = shared if mine else shared.with_name(f"{shared.name}-{uuid.uuid4().hex}")
        try:
            yield part
        finally:
            if not mine or (part.exists() and part.stat().st_size == 0):
                part.unlink(missing_ok=True)


@contextmanager
def _locked(part: Path) -> Iterator[bool]:
    """Create the file if missing and try to lock it; yields whether this process holds it exclusively."""
    if sys.platform == "win32":  # no lock: only the check of the file detects concurrent downloads
        yield True
        return
    with part.open("ab") as file:
        yield _try_lock(part, file)


def _try_lock(part: Path, file: BinaryIO) -> bool:
    """Lock the file; False if another process holds or has renamed it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between open and lock another process may have finished the file and renamed it.
        return os.path.samestat(part.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _attempt(url: str, part: Path, check: Check, policy: RequestPolicy) -> None:
    """Download the rest of the partial file and check it; a file that fails the check is removed."""
    try:
        _receive(url, part, policy)
    except HTTPError as error:
        raise _status_error(error, part) from error
    except URLError as error:
        if isinstance(error.reason, TimeoutError | ConnectionResetError):
            raise _TryAgainError(_reason(error)) from error
        raise TransferError(_reason(error)) from error
    except (TimeoutError, ConnectionError, HTTPException) as error:
        raise _TryAgainError(_reason(error)) from error
    if problem := check(part):
        part.unlink()
        raise _TryAgainError(problem)


def _status_error(error: HTTPError, part: Path) -> Exception:
    if error.code == 404:
        return NotFoundError(_reason(error))
    if error.code == 416:  # the part is not shorter than the file, so it is no prefix of it
        part.unlink(missing_ok=True)
        return _TryAgainError("the partial file does not match the server's")
    if error.code >= 500 or error.code in _BUSY:
        return _TryAgainError(_reason(error), _retry_after(error.headers))
    return TransferError(_reason(error))


def _receive(url: str, part: Path, policy: RequestPolicy) -> None:
    """Append the missing bytes to the partial file, or overwrite it if the server sends the whole file."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": USER_AGENT} | ({"Range": f"bytes={have}-"} if have else {})
    with urlopen(Request(url, headers=headers), timeout=policy.timeout) as response:
        start, promised = _start(response), response.length
        if start not in (0, have):
            raise _TryAgainError(f"requested bytes from {have}, received bytes from {start}")
        if start + (promised or 0) > policy.max_bytes:
            raise TransferError(f"{start + promised} bytes are too many, expected at most {policy.max_bytes}")
        with part.open("ab" if start else "wb") as file:
            received = _copy(response, file, policy.max_bytes - start)
    if received > policy.max_bytes - start:
        part.unlink()
        raise TransferError(f"the server sent too many bytes, expected at most {policy.max_bytes}")
    if promised is not None and received < promised:
        raise _TryAgainError(f"the connection closed after {start + received} bytes")


def _copy(response: HTTPResponse, file: BinaryIO, most: int) -> int:
    """Write the received bytes and return their number; stops within one block after `most`."""
    received = 0
    while received <= most and (block := _read(response)):
        file.write(block)
        received += len(block)
    fsync(file)
    return received


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(_BLOCK)  # available bytes only: none are lost if the connection breaks later
    except OSError as error:  # always a network error: disk errors are raised by write
        raise _TryAgainError(_reason(error)) from error


def _start(response: HTTPResponse) -> int:
    """Offset of the first byte sent: 100 for status 206 with 'bytes 100-199/200'; -1 if invalid."""
    if response.status != 206:
        return 0
    digits = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(digits) if digits.isdecimal() else -1


def _retry_after(headers: Message) -> float:
    """Retry-After in seconds, from a number or a date; 0 if absent."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return str(error.reason if isinstance(error, URLError) else error) or type(error).__name__
