"""The command line of scripts/benchmark.py."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scripts.benchmarks import gpu, parts
from scripts.benchmarks.machine import machine
from scripts.benchmarks.parts import Part
from scripts.benchmarks.picture import write_picture
from scripts.benchmarks.rows import Note, Row, cells, show, write_json
from scripts.benchmarks.workers import WorkerFailed, serve

PARTS: dict[str, Part] = {
    "training": parts.training,
    "evaluation": parts.evaluation,
    "startup": parts.startup,
    "data": parts.data,
    "memory": parts.memory,
    "scaling": parts.scaling,
    "logging": parts.logging,
    "shares": parts.shares,
    "default": parts.default,
    "gpu": gpu.gpu,
}
SLOW = ("logging", "shares", "default")  # left out of a quick check, unless they are asked for


def main(description: str | None) -> int:
    """Measure the parts asked for; 1 where one could not be measured."""
    arguments = parsed(description)
    if arguments.worker:
        serve(*arguments.worker)
        return 0
    rows: list[Row] = []
    notes: list[Note] = []
    chosen = arguments.parts or [name for name in PARTS if not (arguments.quick and name in SLOW)]
    for name in chosen:
        for found in measured(name, arguments.quick):
            (rows if isinstance(found, Row) else notes).append(found)  # type: ignore[arg-type]
    if arguments.quick and not arguments.parts:
        notes.append(Note(f"left out: {', '.join(SLOW)}", "quick"))
    if arguments.picture and not write_picture(arguments.picture, rows, machine()):
        notes.append(Note("not drawn: no speed of training was measured", "picture", failed=True))
    show(rows, notes)
    if arguments.json:
        write_json(arguments.json, rows, notes, {**machine(), "quick": arguments.quick})
    return int(any(note.failed for note in notes))


def parsed(description: str | None) -> argparse.Namespace:
    """The command line; exit code 2 for a part that there is not."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all of them")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and steps, and what is slow left out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured, and on what, there")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="also draw the speeds of training")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if wrong := [name for name in arguments.parts if name not in PARTS]:
        parser.error(f"no part {', '.join(wrong)}: expected {', '.join(PARTS)}")
    for path in filter(None, (arguments.json, arguments.picture)):  # before half an hour of measuring
        if not path.resolve().parent.is_dir():
            parser.error(f"{path}: there is no folder {path.resolve().parent}")
    if arguments.picture and (arguments.picture.suffix != ".png" or "training" not in (arguments.parts or PARTS)):
        parser.error("--picture takes a FILE.png, and the part `training` to draw")
    return arguments


def measured(name: str, quick: bool) -> list[Row | Note]:
    """What a part finds, told on stderr as it comes; a side that fails takes no other part with it."""
    found: list[Row | Note] = []
    try:
        for each in PARTS[name](quick):
            found.append(each._replace(part=name))
            said = " | ".join(filter(None, cells(each))) if isinstance(each, Row) else each.text
            sys.stderr.write(f"{name}: {said}\n")
    except WorkerFailed as failure:
        found.append(Note(f"failed: {failure}", name, failed=True))
    return found
