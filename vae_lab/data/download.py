"""Fetch pictures from the web: `python -m vae_lab.data.download pokemon`.

Politely: one at a time, a pause between two, longer ones when the server is in trouble. A download that was
stopped goes on where it stopped. Imports no torch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import ssl
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from PIL import Image

from vae_lab.data.decode import READ_ERRORS
from vae_lab.errors import UsageError

ARTWORK = "https://raw.githubusercontent.com/PokeAPI/sprites/master/sprites/pokemon/other/official-artwork"
USER_AGENT = "vae_lab (python -m vae_lab.data.download)"
LAST_POKEMON = 1025

Outcome = Literal["fetched", "already here", "not there"]

_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"  # the last chunk of every whole PNG
_BUSY = (408, 425, 429)  # as any 5xx: ask again later
_MAX_WAIT = 600.0  # seconds; a server that asks for more is asked again on another day


@dataclass(frozen=True)
class Source:
    """Numbered PNG files at `base_url`/<number>.png, to be kept in `folder` as 0001.png and so on."""

    base_url: str
    folder: Path
    delay: float = 0.05  # seconds between two pictures
    timeout: float = 20.0  # seconds without a byte
    attempts: int = 4
    first_wait: float = 1.0  # seconds before the second attempt, doubled for each one after


class _TryAgainError(Exception):
    """A failure that may pass: `wait` is how long the server asks for, in seconds, where it says so."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def fetch_all(source: Source, numbers: Sequence[int]) -> Counter[Outcome]:
    """Fetch every number that is not here yet; how many were fetched, already here and not there.

    Raises UsageError when the server cannot be reached, refuses, keeps failing or has none of them, and when
    the folder cannot be written. What was fetched until then stays.
    """
    from rich.console import Console
    from rich.progress import track

    console, outcomes = Console(stderr=True), Counter[Outcome]()
    try:
        source.folder.mkdir(parents=True, exist_ok=True)
        for number in track(numbers, "Fetching pictures", console=console, disable=not console.is_terminal):
            outcomes[fetch(source, number)] += 1
    except OSError as error:
        raise UsageError(
            f"{source.folder}: cannot be written ({error.strerror}).\nSet --folder DIR to one that can."
        ) from error
    if numbers and outcomes["not there"] == len(numbers):
        raise _out_of_reach(f"none of the {len(numbers)} pictures is there (404)", source, numbers[0])
    return outcomes


def fetch(source: Source, number: int) -> Outcome:
    """Fetch one picture, whole or not at all, going on from its `.part` file. Raises as fetch_all."""
    final = source.folder / f"{number:04d}.png"
    if _is_whole(final):
        return "already here"
    url, wait = f"{source.base_url}/{number}.png", source.first_wait
    for attempt in range(1, source.attempts + 1):
        try:
            return _fetch_once(url, final, source.timeout)
        except _TryAgainError as failure:
            if attempt == source.attempts or failure.wait > _MAX_WAIT:
                raise _out_of_reach(str(failure), source, number) from failure
            time.sleep(max(wait, failure.wait))
            wait *= 2
        except (HTTPError, URLError) as error:
            raise _out_of_reach(_reason(error), source, number) from error
        finally:
            time.sleep(source.delay)  # after every request, whatever became of it
    raise AssertionError("the last attempt returns or raises")


def _fetch_once(url: str, final: Path, timeout: float) -> Outcome:
    part = final.with_suffix(".png.part")
    try:
        _transfer(url, part, timeout)
    except HTTPError as error:
        if error.code == 404:
            return "not there"
        if error.code == 416:  # the part is as long as the file, or longer: no beginning of it
            part.unlink(missing_ok=True)
            raise _TryAgainError("the partial file did not fit") from error
        if error.code >= 500 or error.code in _BUSY:
            raise _TryAgainError(_reason(error), _retry_after(error.headers)) from error
        raise
    except URLError as error:
        if isinstance(error.reason, (TimeoutError, ConnectionResetError)):
            raise _TryAgainError(_reason(error)) from error
        raise
    except (TimeoutError, ConnectionError, HTTPException, ssl.SSLError) as error:
        raise _TryAgainError(_reason(error)) from error
    _check_png(part)
    part.replace(final)
    return "fetched"


def _transfer(url: str, part: Path, timeout: float) -> None:
    """Append what is missing to the partial file, or write it anew where the server sends all of it."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": USER_AGENT} | ({"Range": f"bytes={have}-"} if have else {})
    with urlopen(Request(url, headers=headers), timeout=timeout) as response:
        start = _start(response)
        if start not in (0, have):
            raise _TryAgainError(f"asked for bytes from {have}, was sent them from {start}")
        with part.open("ab" if start else "wb") as file:
            shutil.copyfileobj(response, file)
        length = response.headers.get("Content-Length")
    if length is not None and part.stat().st_size < start + int(length):
        raise _TryAgainError(f"the connection closed after {part.stat().st_size} bytes")


def _start(response: HTTPResponse) -> int:
    """The place in the file of the first byte sent: 206 and 'bytes 100-199/200' say 100."""
    if response.status != 206:
        return 0
    digits = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(digits) if digits.isdecimal() else -1


def _check_png(part: Path) -> None:
    """A whole PNG, or none at all: what is no picture is removed, so that the next attempt starts anew."""
    try:
        with Image.open(part, formats=["PNG"]) as picture:
            picture.verify()  # the checksums; it leaves the picture unusable
        with Image.open(part, formats=["PNG"]) as picture:
            picture.load()
    except READ_ERRORS as error:
        part.unlink()
        raise _TryAgainError("what the server sent is no whole PNG") from error


def _is_whole(path: Path) -> bool:
    """Ends as a PNG does; its name alone says much, for only checked files get it."""
    return path.is_file() and path.read_bytes().endswith(_PNG_END)


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


def _out_of_reach(reason: str, source: Source, number: int) -> UsageError:
    return UsageError(
        f"The pictures could not be downloaded: {reason}\n"
        f"Looked for {source.base_url}/{number}.png, to be kept in {source.folder}\n"
        "The same command goes on from there; to start now, without a download: data=digits"
    )


def _default_folder() -> Path:
    return Path(os.environ.get("VAE_LAB_DATA", "data")) / "pokemon"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vae_lab.data.download",
        description="Fetch a picture set, one request at a time. Run it again to go on where it stopped.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("name", choices=["pokemon"], help="which set: pokemon, the official artwork (475x475 PNG)")
    parser.add_argument("--folder", type=Path, default=_default_folder(), help="where the pictures go")
    parser.add_argument("--first", type=int, default=1, help="number of the first picture")
    parser.add_argument("--last", type=int, default=LAST_POKEMON, help="number of the last picture")
    parser.add_argument("--base-url", default=ARTWORK, help="where <number>.png is found")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds between two pictures")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.first <= arguments.last:
        parser.error(f"--first {arguments.first} --last {arguments.last}: expected 1 <= first <= last")
    if not arguments.base_url.startswith(("http://", "https://")):
        parser.error(f"--base-url {arguments.base_url}: expected an address with http:// or https://")
    if not arguments.delay >= 0:
        parser.error(f"--delay {arguments.delay}: expected 0 seconds or more")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 2 for a wrong request or no network, 130 after Ctrl-C."""
    arguments = _arguments(argv)
    source = Source(arguments.base_url.rstrip("/"), arguments.folder.expanduser().absolute(), arguments.delay)
    try:
        outcomes = fetch_all(source, range(arguments.first, arguments.last + 1))
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. The same command goes on from here.\n")
        return 130
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    sys.stdout.write(f"{source.folder}: {counts}\nTrain on them: python -m vae_lab.train model=conv data=pokemon\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
