"""Fetch pictures from the web: `python -m vae_lab.data.download pokemon`.

Politely: one at a time, a pause between two, longer ones when the server is in trouble. A download that was
stopped goes on where it stopped. Imports no torch.
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

_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"  # the last chunk of every whole PNG
_MAX_BYTES = 100_000_000  # of one picture


@dataclass(frozen=True)
class Source:
    """Numbered PNG files at `base_url`/<number>.png, to be kept in `folder` as 0001.png and so on."""

    base_url: str
    folder: Path
    manner: RequestPolicy


def fetch_all(source: Source, numbers: Sequence[int]) -> Counter[FetchResult]:
    """Fetch every number that is not here yet; how many were fetched, already here and not there.

    Raises UsageError when the server cannot be reached, refuses, keeps failing or has none of them, and when
    the folder cannot be written. What was fetched until then stays.
    """
    outcomes = Counter[FetchResult]()
    try:
        source.folder.mkdir(parents=True, exist_ok=True)
        for number in with_progress(numbers, len(numbers), "Fetching pictures"):
            outcomes[fetch(source, number)] += 1
    except OSError as error:
        raise UsageError(
            f"{source.folder}: cannot be written ({error.strerror}).\nSet --folder DIR to one that can."
        ) from error
    if numbers and outcomes["not there"] == len(numbers):
        raise _out_of_reach(f"none of the {len(numbers)} pictures is there (404)", source, numbers[0])
    return outcomes


def fetch(source: Source, number: int) -> FetchResult:
    """Fetch one picture, whole or not at all, going on from its `.part` file. Raises as fetch_all."""
    final = source.folder / f"{number:04d}.png"
    if _is_whole(final):
        return "already here"
    try:
        transfer(f"{source.base_url}/{number}.png", final, _png_problem, source.manner)
    except NotFoundError:
        return "not there"
    except TransferError as error:
        raise _out_of_reach(str(error), source, number) from error
    return "fetched"


def _png_problem(path: Path) -> str:
    """What is wrong with the file as a PNG: the checksums, then the pixels themselves."""
    try:
        check_png(path.read_bytes())
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()
    except READ_ERRORS:
        return "what the server sent is no whole PNG"
    return ""


def _is_whole(path: Path) -> bool:
    """Ends as a PNG does; its name alone says much, for only checked files get it."""
    return path.is_file() and path.read_bytes().endswith(_PNG_END)


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
    manner = RequestPolicy(delay=arguments.delay, max_bytes=_MAX_BYTES)
    source = Source(arguments.base_url.rstrip("/"), arguments.folder.expanduser().absolute(), manner)
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
