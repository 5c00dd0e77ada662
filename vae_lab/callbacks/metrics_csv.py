"""metrics.csv: a row per validation, without times, so that two equal runs write the same bytes."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from vae_lab.data.datamodule import datamodule_of, has_validation
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import fsync, write_atomically

log = logging.getLogger("vae_lab")


class MetricsCSV(Callback):
    """Writes a row per validation, or per epoch without validation."""

    def __init__(self) -> None:
        self._written_at = -1
        self._num_rows = 0

    def state_dict(self) -> dict[str, Any]:
        return {"written_at": self._written_at, "num_rows": self._num_rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._written_at, self._num_rows = state_dict["written_at"], state_dict["num_rows"]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Truncate the table to the checkpoint: a killed run may have written more rows, or part of one."""
        path = csv_path(trainer)
        if trainer.is_global_zero and path.exists():
            rows = read_rows(path)[: self._num_rows]
            if len(rows) < self._num_rows:
                log.warning("%s has %d rows, the checkpoint expects %d", path, len(rows), self._num_rows)
            self._num_rows = len(rows)
            write_rows(path, rows)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._add_row(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not has_validation(trainer):
            self._add_row(trainer, pl_module)

    def _add_row(self, trainer: Trainer, pl_module: Any) -> None:
        step = trainer.global_step
        if step == self._written_at:
            return
        row = {"epoch": step // datamodule_of(trainer).steps_per_epoch, "step": step, **pl_module.record_metrics()}
        self._written_at = step
        self._num_rows += 1
        if trainer.is_global_zero:
            add_row(csv_path(trainer), row)


def csv_path(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "metrics.csv"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, values as text. UsageError: the file is not CSV."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{path}: not a metrics table ({error})\nmove the file away to start a new one") from error


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace the table atomically; its columns are those of all rows, in order of appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row; rewrite the table if it is new or the row has a new column."""
    columns = []
    if path.exists():
        with path.open(newline="") as file:
            columns = next(csv.reader(file), [])
    if not set(row) <= set(columns):
        write_rows(path, [*(read_rows(path) if columns else []), row])
        return
    with path.open("a", newline="") as file:
        csv.DictWriter(file, columns, restval="", lineterminator="\n").writerow(row)
        fsync(file)
