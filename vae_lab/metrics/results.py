"""Results of an evaluation: evaluation.json, evaluation.npz, and the table on the screen."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vae_lab.metrics.subject import Row
from vae_lab.utils.files import write_atomically, write_json

PARTS = (
    "likelihood", "baseline", "anomaly", "reconstruction", "representation", "disentanglement", "samples", "cost",
)  # fmt: skip


def write_part(run: Path, part: str, rows: list[Row], per_image: Mapping[str, Tensor], common: dict[str, Any]) -> None:
    """Add a part to RUN/evaluation.json and the values of each image to RUN/evaluation.npz, the same bytes each time.

    Parts measured before stay if what holds for all of them, `common`, is the same; else they are removed. Speeds are
    not written: they differ from run to run.
    """
    path, arrays_path = run / "evaluation.json", run / "evaluation.npz"
    before, arrays = json.loads(path.read_text()) if path.is_file() else {}, dict[str, Any]()
    if before.get("protocol") != common:
        before = {}
    elif arrays_path.is_file():
        with np.load(arrays_path, allow_pickle=False) as stored:
            arrays = dict(stored)
    before[part] = {row.name: _entry(row) for row in rows if "measured" not in row.protocol}
    arrays |= {name: values.numpy() for name, values in per_image.items()}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: arrays[name] for name in sorted(arrays)})
    write_atomically(arrays_path, buffer.getvalue())
    write_json(path, {"protocol": common, **{name: before[name] for name in PARTS if name in before}})


def _entry(row: Row) -> dict[str, Any]:
    if row.value is None:
        return {"value": None, "reason": row.reason}
    if not math.isfinite(row.value):
        return {"value": None, "reason": "not finite"}
    return {"value": row.value, "stderr": row.stderr, "protocol": row.protocol}


def print_table(run: Path, found: Mapping[str, list[Row]], common: Mapping[str, Any]) -> None:
    """A part's common protocol beside its name, that of single rows beside them; a shared reason once."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for name, rows in found.items():
        protocols = [row.protocol.items() for row in rows if row.value is not None] or [{}.items()]
        shared = [item for item in protocols[0] if len(protocols) > 1 and all(item in each for each in protocols)]
        table.add_row(f"[cyan]{name}", "", "", protocol_words(shared))
        for reason, group in groupby(rows, lambda row: row.reason if row.value is None else None):
            same = list(group)
            if reason is not None:
                names = same[0].name if len(same) == 1 else f"{same[0].name} and {len(same) - 1} more"
                table.add_row(f"  {names}", "-", "", reason)
                continue
            for row in same:
                own = protocol_words([item for item in row.protocol.items() if item not in shared])
                table.add_row(
                    f"  {row.name}", number_text(row.value), f"± {number_text(row.stderr)}" if row.stderr else "", own
                )
    console = Console(width=None if sys.stdout.isatty() else 160)  # no wrapping in a file
    console.print(table, highlight=False)
    of = f"{common['checkpoint']} weights of step {common['step']:,}, prior: {common['prior']}"
    console.print(f"{common['split']} split, ± standard error, {of}", highlight=False, soft_wrap=True)
    console.print(f"{run / 'evaluation.json'}", highlight=False, soft_wrap=True)


def protocol_words(protocol: Iterable[tuple[str, Any]]) -> str:
    """`images 180, K 100`."""

    def word(value: Any) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{key} {word(value)}" for key, value in protocol if key != "measured")


def number_text(value: float | None) -> str:
    """Four digits below 10, two decimals above; whole numbers as they are."""
    if value is None:
        return "-"
    whole = value == int(value) if math.isfinite(value) else False
    return f"{value:,.0f}" if whole or abs(value) >= 1e5 else f"{value:.4g}" if abs(value) < 10 else f"{value:,.2f}"
