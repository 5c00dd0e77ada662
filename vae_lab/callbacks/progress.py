"""The progress bar, and a line per validation for logs and pipes."""

from __future__ import annotations

import logging
import time
from typing import Any

from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from vae_lab.callbacks.throughput import Throughput
from vae_lab.data.datamodule import datamodule_of, has_validation

log = logging.getLogger("vae_lab")
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(bar_width=10),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[shown]}"),
)


class Progress(Callback):
    """Shows a bar per epoch on a terminal (ELBO, KL, images per second), and prints a line per validation.

    refresh_seconds: shortest time between updates of the bar. enabled: False for lines only.
    """

    def __init__(self, throughput: Throughput, refresh_seconds: float = 0.5, enabled: bool = True) -> None:
        self.console = Console(stderr=True)
        self.throughput, self.refresh_seconds = throughput, refresh_seconds
        self.enabled = enabled and self.console.is_terminal
        self._bar: RichProgress | None = None
        self._task = TaskID(0)
        self._moved_at = 0.0

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        self._print_line(trainer, opening_line(trainer))
        if self.enabled:
            # No auto_refresh: its thread redraws ten times a second and slows every step.
            self._bar = RichProgress(*COLUMNS, console=self.console, transient=True, auto_refresh=False)
            self._task = self._bar.add_task("", total=datamodule_of(trainer).steps_per_epoch, shown="")
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if self._bar is None or time.monotonic() - self._moved_at < self.refresh_seconds:
            return
        self._moved_at = time.monotonic()
        epoch, done = divmod(trainer.global_step, datamodule_of(trainer).steps_per_epoch)
        shown = f"{format_short(pl_module.metrics)} {self.throughput.so_far(trainer):,.0f} images/s"
        last = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        self._bar.update(self._task, completed=done, description=f"epoch {epoch + 1}{last}", shown=shown)
        self._bar.refresh()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking and trainer.is_global_zero:
            self._print_epoch(trainer, f"val {format_terms(pl_module.metrics, 'val')}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Print the training means if there is no validation."""
        if trainer.is_global_zero and not has_validation(trainer):
            self._print_epoch(trainer, f"train {format_terms(pl_module.epoch_means(), 'train')}")

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._print_line(trainer, f"test {format_terms(pl_module.metrics, 'test')}")

    def on_train_end(self, *_: Any) -> None:
        self._close()

    def on_exception(self, *_: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print_epoch(self, trainer: Trainer, found: str) -> None:
        epoch = trainer.global_step // datamodule_of(trainer).steps_per_epoch
        rate = self.throughput.rates[-1:]
        speed = f"  {rate[0]:,.0f} images/s" if rate else ""
        self._print_line(trainer, f"epoch {epoch:4d}  step {trainer.global_step:7d}  {found}{speed}")

    def _print_line(self, trainer: Trainer, line: str) -> None:
        log.info(line)
        (self._bar.console if self._bar else self.console).print(line, highlight=False, soft_wrap=True)


def format_terms(metrics: dict[str, float], split: str) -> str:
    """`elbo -98.12  log_px -75.01  kl 23.11`; empty if there are no metrics yet."""
    found = ((name, metrics.get(f"{split}/{name}")) for name in ("elbo", "log_px", "kl"))
    return "  ".join(f"{name} {value:.2f}" for name, value in found if value is not None)


def format_short(metrics: dict[str, float]) -> str:
    """`elbo -98.12  kl 23.11` of the last training steps: fits 80 columns with the rest of the bar."""
    return "  ".join(f"{name} {metrics[f'train/{name}']:.2f}" for name in ("elbo", "kl") if f"train/{name}" in metrics)


def opening_line(trainer: Trainer) -> str:
    """Sizes of the splits, image shape, steps per epoch and device."""
    data = datamodule_of(trainer)
    sizes = " / ".join(f"{data.size(split):,} {split}" for split in ("train", "val", "test"))
    channels, height, width = data.image.shape
    device = trainer.strategy.root_device
    return f"{sizes} images of {channels}x{height}x{width}; {data.steps_per_epoch} steps an epoch on {device}"
