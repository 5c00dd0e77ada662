"""What a measurement says: medians, their ratio, what was wanted; as a table and as JSON."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

WIDTH = 140  # of the table in a file or a pipe
FLAT = 0.1  # how far from 1 a ratio is that counts as the same
ABOUT = 1.25  # how far above 1 a ratio is that counts as about 1


class Wanted(NamedTuple):
    """What is asked of a ratio or of a difference, and in which words."""

    rule: Literal["at least", "at most", "flat", "about", "shown"]
    value: float = 1.0
    unit: str = ""

    def __str__(self) -> str:
        if self.rule == "shown":
            return "-"
        if self.rule == "flat":
            return f"{self.value:g} within {FLAT:.0%}"
        return f"{self.rule} {self.value:g}{self.unit}"

    def reached(self, found: float) -> bool | None:
        """Whether it is so; None where nothing is asked."""
        match self.rule:
            case "at least":
                return found >= self.value
            case "at most":
                return found <= self.value
            case "flat":
                return abs(found - self.value) <= FLAT
            case "about":
                return found <= ABOUT * self.value
        return None


class Row(NamedTuple):
    """A measurement beside its comparison: medians, and what every repeat gave."""

    what: str
    ours: float
    beside: str
    theirs: float
    ratio: float | None
    difference: float | None
    wanted: str
    reached: bool | None
    unit: str
    all_ours: list[float]
    all_theirs: list[float]
    part: str = ""


class Note(NamedTuple):
    """What a table does not hold, and why."""

    text: str
    part: str = ""
    failed: bool = False


def compared(
    what: str,
    ours: Sequence[float],
    beside: str,
    theirs: Sequence[float],
    wanted: Wanted,
    unit: str,
    scale: float = 1.0,
) -> Row:
    """Medians, and the median of the ratios pair by pair; `scale` takes what was measured to `unit_rows`."""
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return _row(what, ours, beside, theirs, wanted, unit, scale)._replace(ratio=ratio, reached=wanted.reached(ratio))


def subtracted(
    what: str,
    ours: Sequence[float],
    beside: str,
    theirs: Sequence[float],
    wanted: Wanted,
    unit: str,
    scale: float = 1.0,
) -> Row:
    """The same with the median of the differences, in `unit_rows`."""
    found = scale * statistics.median(a - b for a, b in zip(ours, theirs, strict=True))
    return _row(what, ours, beside, theirs, wanted, unit, scale)._replace(
        difference=found, reached=wanted.reached(found)
    )


def _row(
    what: str, ours: Sequence[float], beside: str, theirs: Sequence[float], wanted: Wanted, unit: str, scale: float
) -> Row:
    all_ours, all_theirs = [scale * value for value in ours], [scale * value for value in theirs]
    medians = statistics.median(all_ours), statistics.median(all_theirs)
    return Row(what, medians[0], beside, medians[1], None, None, str(wanted), None, unit, all_ours, all_theirs)


def number(value: float) -> str:
    """Three digits, and all that stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cells(row: Row) -> list[str]:
    """What the table shows of a row."""
    ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
    if row.difference is not None:
        ratio = f"{row.difference:+,.0f} {row.unit}"
    verdict = {True: "ok", False: "short", None: ""}[row.reached]
    return [row.what, number(row.ours), row.beside, number(row.theirs), ratio, row.wanted, verdict, row.unit]


def show(rows: Sequence[Row], notes: Sequence[Note]) -> None:
    """A table on stdout, and below it what it leaves out."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    table = Table("what", "ours", "beside", "theirs", "ratio", "wanted", "", "unit")
    part = ""
    for row in rows:
        if part and row.part != part:
            table.add_section()
        part = row.part
        table.add_row(*cells(row))
    if rows:
        console.print(table)
    for note in notes:
        console.print(f"{note.part}: {note.text}", markup=False, soft_wrap=True)


def write_json(path: Path, rows: Sequence[Row], notes: Sequence[Note], machine: dict[str, Any]) -> None:
    """Everything measured, on what."""
    content = {
        "machine": machine,
        "rows": [row._asdict() for row in rows],
        "notes": [note._asdict() for note in notes],
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
