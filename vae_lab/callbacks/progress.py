"""What a run prints: a table of the layers, the progress bar, and a line per validation for logs and pipes."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelSummary
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from vae_lab.data.datamodule import datamodule_of, has_validation

log = logging.getLogger("vae_lab")
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(bar_width=10),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[shown]}"),
)


class ModelSummaryTable(ModelSummary):
    """Prints names, types and parameter counts of the layers with parameters, down to `max_depth`, on stderr."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]], total_parameters: int, trainable_parameters: int, *_: Any, **__: Any
    ) -> None:
        columns = dict(summary_data)
        table = Table("layer", "type", box=None, pad_edge=False)
        table.add_column("parameters", justify="right")
        for name, kind, count in zip(columns["Name"], columns["Type"], columns["Params"], strict=True):
            if count.strip() != "0" and name.partition(".")[0] != "average":  # a copy of the model
                table.add_row(name, kind, count)
        console = Console(stderr=True, highlight=False)
        console.print(table)
        console.print(f"{trainable_parameters:,} trainable parameters")


class Progress(Callback):
    """Shows a bar per epoch on a terminal (ELBO, KL, images per second), and prints a line per validation.

    refresh_seconds: shortest time between updates of the bar. enabled: False for lines only.
    """

    def __init__(self, refresh_seconds: float = 0.5, enabled: bool = True) -> None:
        self.console = Console(stderr=True)
        self.refresh_seconds, self.enabled = refresh_seconds, enabled and self.console.is_terminal
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        self._shown_at, self._shown_step = 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        self._print_line(opening_line(trainer))
        if self.enabled:
            # No auto_refresh: its thread redraws ten times a second and slows every step.
            self._bar = RichProgress(*COLUMNS, console=self.console, transient=True, auto_refresh=False)
            self._task = self._bar.add_task("", total=datamodule_of(trainer).steps_per_epoch, shown="")
            self._bar.start()
            self._shown_at, self._shown_step = pl_module.stopwatch.training_clock(), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if self._bar is None or (now := pl_module.stopwatch.training_clock()) - self._shown_at < self.refresh_seconds:
            return
        data, seconds, steps = datamodule_of(trainer), now - self._shown_at, trainer.global_step - self._shown_step
        self._shown_at, self._shown_step = now, trainer.global_step
        epoch, done = divmod(trainer.global_step, data.steps_per_epoch)
        rate = steps * data.step_size / seconds
        terms = format_terms(pl_module.metrics, "train", ("elbo", "kl"))  # fits 80 columns with the rest of the bar
        last = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        shown = f"{terms} {rate:,.0f} images/s"
        self._bar.update(self._task, completed=done, description=f"epoch {epoch + 1}{last}", shown=shown)
        self._bar.refresh()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._print_epoch(trainer, pl_module, f"val {format_terms(pl_module.metrics, 'val')}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Print the training means if there is no validation."""
        if not has_validation(trainer):
            self._print_epoch(trainer, pl_module, f"train {format_terms(pl_module.epoch_means(), 'train')}")

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._print_line(f"test {format_terms(pl_module.metrics, 'test')}")

    def on_train_end(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(self, *_: Any) -> None:
        self.on_train_end()

    def _print_epoch(self, trainer: Trainer, pl_module: Any, found: str) -> None:
        epoch = trainer.global_step // datamodule_of(trainer).steps_per_epoch
        speed = "".join(f"  {rate:,.0f} images/s" for rate in pl_module.stopwatch.rates[-1:])
        if trainer.is_global_zero:
            self._print_line(f"epoch {epoch:4d}  step {trainer.global_step:7d}  {found}{speed}")

    def _print_line(self, line: str) -> None:
        log.info(line)
        (self._bar.console if self._bar else self.console).print(line, highlight=False, soft_wrap=True)


def format_terms(metrics: dict[str, float], split: str, names: tuple[str, ...] = ("elbo", "log_px", "kl")) -> str:
    """`elbo -98.12  log_px -75.01  kl 23.11`; empty if there are no metrics yet."""
    found = ((name, metrics.get(f"{split}/{name}")) for name in names)
    return "  ".join(f"{name} {value:.2f}" for name, value in found if value is not None)


def opening_line(trainer: Trainer) -> str:
    """Sizes of the splits, image shape, steps per epoch and device."""
    data = datamodule_of(trainer)
    sizes = " / ".join(f"{data.size(split):,} {split}" for split in ("train", "val", "test"))
    channels, height, width = data.image.shape
    device = trainer.strategy.root_device
    return f"{sizes} images of {channels}x{height}x{width}; {data.steps_per_epoch} steps an epoch on {device}"
