"""Download files, each complete or not at all: `python -m vae_lab.data.download pokemon`. Imports no torch."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import sys
from collections import Counter
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from PIL import Image
from rich.console import Console
from rich.progress import track

from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import write_atomically

ARTWORK = "https://raw.githubusercontent.com/PokeAPI/sprites/master/sprites/pokemon/other/official-artwork"
LAST_POKEMON = 1025
TIMEOUT = 30.0  # seconds without receiving a byte


def fetch_file(urls: Sequence[str], path: Path, md5: str | None = None) -> None:
    """Save the file of the first address that has it and sends it whole; md5: its checksum, else it is a PNG.

    Raises OSError or HTTPException with the problem of the last address.
    """
    url, *mirrors = urls
    try:
        request = Request(url, headers={"User-Agent": "vae_lab"})  # some servers refuse Python's default
        with urlopen(request, timeout=TIMEOUT) as response:
            content = response.read()  # raises IncompleteRead, an HTTPException, if it is cut short
        _verify(content, md5)
    except (OSError, HTTPException):
        if not mirrors:
            raise
        fetch_file(mirrors, path, md5)
    else:
        write_atomically(path, content)


def _verify(content: bytes, md5: str | None) -> None:
    """Raise OSError unless the content has the checksum, or without one is a PNG."""
    if md5 is not None:
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5:
            raise OSError(f"the downloaded file has the checksum {found}, expected {md5}")
        return
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            picture.verify()
    except (OSError, SyntaxError) as error:
        raise OSError("the server did not send a complete PNG") from error


def fetch_pictures(base_url: str, folder: Path, numbers: Sequence[int]) -> Counter[str]:
    """Save `base_url`/<number>.png as 0001.png and so on in `folder`, skipping those present; counts by outcome.

    Raises UsageError if the server fails or has none of them, or if the folder cannot be written. Pictures fetched
    before the error are kept.
    """
    outcomes: Counter[str] = Counter()
    for number in track(numbers, "Fetching pictures", console=Console(stderr=True), transient=True):
        url, path = f"{base_url}/{number}.png", folder / f"{number:04d}.png"
        try:
            outcomes[_fetch_picture(url, path)] += 1
        except (OSError, HTTPException) as error:
            raise download_failed("The pictures", error, f"{url}, to save in {folder}") from error
    if outcomes["not there"] == len(numbers):
        problem = OSError(f"the server has none of the {len(numbers)} (404)")
        raise download_failed("The pictures", problem, f"{base_url}/{numbers[0]}.png, to save in {folder}")
    return outcomes


def _fetch_picture(url: str, path: Path) -> str:
    if path.is_file():
        return "already here"
    try:
        fetch_file([url], path)
    except HTTPError as error:
        if error.code == 404:
            return "not there"
        raise
    return "fetched"


def download_failed(what: str, error: Exception, looked_for: str) -> UsageError:
    return UsageError(
        f"{what} could not be downloaded: {str(error) or type(error).__name__}\nLooked for {looked_for}\n"
        "Run the same command to resume; to start now, without a download: data=digits"
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vae_lab.data.download",
        description="Download a picture set. Run it again to resume an interrupted download.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    folder = Path(os.environ.get("VAE_LAB_DATA", "data")) / "pokemon"
    parser.add_argument("name", choices=["pokemon"], help="which set: pokemon, the official artwork (475x475 PNG)")
    parser.add_argument("--folder", type=Path, default=folder, help="where to save the pictures")
    parser.add_argument("--first", type=int, default=1, help="number of the first picture")
    parser.add_argument("--last", type=int, default=LAST_POKEMON, help="number of the last picture")
    parser.add_argument("--base-url", default=ARTWORK, help="URL that <number>.png is relative to")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.first <= arguments.last:
        parser.error(f"--first {arguments.first} --last {arguments.last}: expected 1 <= first <= last")
    if not arguments.base_url.startswith(("http://", "https://")):
        parser.error(f"--base-url {arguments.base_url}: expected an address with http:// or https://")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit code 0; 2 for wrong arguments or a failed download; 130 after Ctrl-C."""
    arguments = _arguments(argv)
    folder = arguments.folder.expanduser().absolute()
    try:
        outcomes = fetch_pictures(arguments.base_url.rstrip("/"), folder, range(arguments.first, arguments.last + 1))
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. Run the same command to resume.\n")
        return 130
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    sys.stdout.write(f"{folder}: {counts}\nTrain on them: python -m vae_lab.train model=conv data=pokemon\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
