"""One file from the web, whole or not at all: gone on with where it stopped, asked for again where that may help.

What has arrived lies in `<name>.part`; the file gets its name once it has been checked. Imports no torch.
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
_BUSY = (408, 425, 429)  # as any 5xx: ask again later
_BLOCK = 2**16

Check = Callable[[Path], str]  # what is wrong with a file; nothing where it is right


@dataclass(frozen=True)
class RequestPolicy:
    """How patiently a server is asked, in seconds, and how much it may send."""

    timeout: float = 20.0  # without a byte
    attempts: int = 4
    first_wait: float = 1.0  # before the second attempt, doubled for each one after
    longest_wait: float = 600.0  # a server that asks for more is asked again on another day
    delay: float = 0.0  # after every request, whatever became of it
    max_bytes: int = MAX_BYTES


class TransferError(Exception):
    """The file could not be had; the message is the reason."""


class NotFoundError(TransferError):
    """The server has no such file (404)."""


class _TryAgainError(Exception):
    """A failure that may pass: `wait` is how long the server asks for, in seconds, where it says so."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def transfer(url: str, final: Path, check: Check, manner: RequestPolicy) -> None:
    """Fetch the file, going on from its `.part`. Raises TransferError, and OSError when it cannot be written."""
    wait = manner.first_wait
    for attempt in range(1, manner.attempts + 1):
        try:
            with _partial(final.with_name(f"{final.name}.part")) as part:
                _attempt(url, part, check, manner)
                part.replace(final)
            return
        except _TryAgainError as failure:
            if attempt == manner.attempts or failure.wait > manner.longest_wait:
                raise TransferError(str(failure)) from failure
            time.sleep(max(wait, failure.wait))
            wait *= 2
        finally:
            time.sleep(manner.delay)


@contextmanager
def _partial(shared: Path) -> Iterator[Path]:
    """The partial file to go on with; another one, for a while, where a second process is at work on it."""
    with _locked(shared) as mine:
        part = shared if mine else shared.with_name(f"{shared.name}-{uuid.uuid4().hex}")
        try:
            yield part
        finally:
            if not mine or (part.exists() and part.stat().st_size == 0):
                part.unlink(missing_ok=True)


@contextmanager
def _locked(part: Path) -> Iterator[bool]:
    """Whether this process alone writes to the file from here on; it is made where there is none."""
    if sys.platform == "win32":  # where two downloads at once are told from one by their checks alone
        yield True
        return
    with part.open("ab") as file:
        yield _is_ours(part, file)


def _is_ours(part: Path, file: BinaryIO) -> bool:
    """Lock the file, unless another process has done so."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between the opening and the lock the other one may have finished it and given it its name.
        return os.path.samestat(part.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _attempt(url: str, part: Path, check: Check, manner: RequestPolicy) -> None:
    """Fetch what is missing of the partial file and check the whole; what fails the check is removed."""
    try:
        _receive(url, part, manner)
    except HTTPError as error:
        raise _of_status(error, part) from error
    except URLError as error:
        if isinstance(error.reason, TimeoutError | ConnectionResetError):
            raise _TryAgainError(_reason(error)) from error
        raise TransferError(_reason(error)) from error
    except (TimeoutError, ConnectionError, HTTPException) as error:
        raise _TryAgainError(_reason(error)) from error
    if problem := check(part):
        part.unlink()
        raise _TryAgainError(problem)


def _of_status(error: HTTPError, part: Path) -> Exception:
    if error.code == 404:
        return NotFoundError(_reason(error))
    if error.code == 416:  # the part is as long as the file, or longer: no beginning of it
        part.unlink(missing_ok=True)
        return _TryAgainError("the partial file did not fit")
    if error.code >= 500 or error.code in _BUSY:
        return _TryAgainError(_reason(error), _retry_after(error.headers))
    return TransferError(_reason(error))


def _receive(url: str, part: Path, manner: RequestPolicy) -> None:
    """Append what is missing to the partial file, or write it anew where the server sends all of it."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": USER_AGENT} | ({"Range": f"bytes={have}-"} if have else {})
    with urlopen(Request(url, headers=headers), timeout=manner.timeout) as response:
        start, promised = _start(response), response.length
        if start not in (0, have):
            raise _TryAgainError(f"asked for bytes from {have}, was sent them from {start}")
        if start + (promised or 0) > manner.max_bytes:
            raise TransferError(f"{start + promised} bytes are too many, at most {manner.max_bytes} were expected")
        with part.open("ab" if start else "wb") as file:
            received = _copy(response, file, manner.max_bytes - start)
    if received > manner.max_bytes - start:
        part.unlink()
        raise TransferError(f"more bytes were sent than the {manner.max_bytes} that were expected at most")
    if promised is not None and received < promised:
        raise _TryAgainError(f"the connection closed after {start + received} bytes")


def _copy(response: HTTPResponse, file: BinaryIO, most: int) -> int:
    """Write what arrives; the number of bytes, a block more than `most` where there is no end."""
    received = 0
    while received <= most and (block := _read(response)):
        file.write(block)
        received += len(block)
    fsync(file)
    return received


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(_BLOCK)  # what is there: of a connection that then breaks nothing is lost
    except OSError as error:  # of the network, whatever its name: those of the disk come from elsewhere
        raise _TryAgainError(_reason(error)) from error


def _start(response: HTTPResponse) -> int:
    """The place in the file of the first byte sent: 206 and 'bytes 100-199/200' say 100."""
    if response.status != 206:
        return 0
    digits = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(digits) if digits.isdecimal() else -1


def _retry_after(headers: Message) -> float:
    """Seconds the server asks to wait: it may give a number or a date."""
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
