"""Download a picture set: `python -m vae_lab.data.download pokemon`.

One request at a time, with a pause after each and back-off on server errors. An interrupted download
resumes where it stopped. Imports no torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from vae_lab.data.decode import READ_ERRORS, check_png
from vae_lab.data.progress import with_progress
from vae_lab.data.transfer import NotFoundError, RequestPolicy, TransferError, transfer
from vae_lab.utils.errors import UsageError

ARTWORK = "https://raw.githubusercontent.com/PokeAPI/sprites/master/sprites/pokemon/other/official-artwork"
LAST_POKEMON = 1025

FetchResult = Literal["fetched", "already here", "not there"]

_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"  # the last chunk of every complete PNG
_MAX_BYTES = 100_000_000  # per picture


@dataclass(frozen=True)
class DownloadSource:
    """Numbered PNG files at `base_url`/<number>.png, saved in `folder` as 0001.png and so on."""

    base_url: str
    folder: Path
    policy: RequestPolicy


def fetch_all(source: DownloadSource, numbers: Sequence[int]) -> Counter[FetchResult]:
    """Fetch the pictures that are not in the folder yet; returns the count of each `FetchResult`.

    Raises UsageError if the server cannot be reached, refuses, keeps failing or has none of them, or if the
    folder cannot be written. Pictures fetched before the error are kept.
    """
    outcomes = Counter[FetchResult]()
    try:
        source.folder.mkdir(parents=True, exist_ok=True)
        for number in with_progress(numbers, len(numbers), "Fetching pictures"):
            outcomes[fetch(source, number)] += 1
    except OSError as error:
        raise UsageError(
            f"{source.folder}: cannot be written ({error.strerror}).\nSet --folder DIR to a writable folder."
        ) from error
    if numbers and outcomes["not there"] == len(numbers):
        raise _download_error(f"the server has none of the {len(numbers)} pictures (404)", source, numbers[0])
    return outcomes


def fetch(source: DownloadSource, number: int) -> FetchResult:
    """Fetch one picture atomically, resuming from its `.part` file. Raises UsageError as fetch_all."""
    final = source.folder / f"{number:04d}.png"
    if _is_whole(final):
        return "already here"
    try:
        transfer(f"{source.base_url}/{number}.png", final, _png_problem, source.policy)
    except NotFoundError:
        return "not there"
    except TransferError as error:
        raise _download_error(str(error), source, number) from error
    return "fetched"


def _png_problem(path: Path) -> str:
    """The problem with the file as a PNG, after checking checksums and decoding; empty if it is valid."""
    try:
        check_png(path.read_bytes())
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()
    except READ_ERRORS:
        return "the server did not send a complete PNG"
    return ""


def _is_whole(path: Path) -> bool:
    """Whether the file ends as a PNG does; enough, since only checked files get the final name."""
    return path.is_file() and path.read_bytes().endswith(_PNG_END)


def _download_error(reason: str, source: DownloadSource, number: int) -> UsageError:
    return UsageError(
        f"The pictures could not be downloaded: {reason}\n"
        f"Looked for {source.base_url}/{number}.png, to save in {source.folder}\n"
        "Run the same command to resume; to start now, without a download: data=digits"
    )


def _default_folder() -> Path:
    return Path(os.environ.get("VAE_LAB_DATA", "data")) / "pokemon"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vae_lab.data.download",
        description="Download a picture set, one request at a time. Run it again to resume an interrupted download.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("name", choices=["pokemon"], help="which set: pokemon, the official artwork (475x475 PNG)")
    parser.add_argument("--folder", type=Path, default=_default_folder(), help="where to save the pictures")
    parser.add_argument("--first", type=int, default=1, help="number of the first picture")
    parser.add_argument("--last", type=int, default=LAST_POKEMON, help="number of the last picture")
    parser.add_argument("--base-url", default=ARTWORK, help="URL that <number>.png is relative to")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds to wait after each request")
    arguments = parser.parse_args(argv)
    if not 0 < arguments.first <= arguments.last:
        parser.error(f"--first {arguments.first} --last {arguments.last}: expected 1 <= first <= last")
    if not arguments.base_url.startswith(("http://", "https://")):
        parser.error(f"--base-url {arguments.base_url}: expected an address with http:// or https://")
    if not arguments.delay >= 0:
        parser.error(f"--delay {arguments.delay}: expected 0 seconds or more")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit code 0; 2 for wrong arguments or a failed download; 130 after Ctrl-C."""
    arguments = _arguments(argv)
    policy = RequestPolicy(delay=arguments.delay, max_bytes=_MAX_BYTES)
    source = DownloadSource(arguments.base_url.rstrip("/"), arguments.folder.expanduser().absolute(), policy)
    try:
        outcomes = fetch_all(source, range(arguments.first, arguments.last + 1))
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. Run the same command to resume.\n")
        return 130
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    sys.stdout.write(f"{source.folder}: {counts}\nTrain on them: python -m vae_lab.train model=conv data=pokemon\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
