"""Training throughput in images per second, and the seconds spent on training and validation."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, Trainer

from vae_lab.data.datamodule import datamodule_of
from vae_lab.utils.stopwatch import Stopwatch


class Throughput(Callback):
    """Records each epoch in the module's stopwatch. Must come before the callbacks that draw and save."""

    def __init__(self) -> None:
        self._started: float | None = None  # None between epochs
        self._first_step = 0
        self._validating = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._started, self._first_step = pl_module.stopwatch.training_clock(), trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._end_epoch(trainer, pl_module)
        self._validating = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.stopwatch.seconds["validation"] += time.perf_counter() - self._validating

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """End the epoch's measurement if no validation did."""
        self._end_epoch(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Count the images and seconds of a partial epoch, but not its rate."""
        self._count(trainer, pl_module)

    def _end_epoch(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.log_steps()  # synchronises with the device, so that its work is counted
        if rate := self._count(trainer, pl_module):
            pl_module.stopwatch.rates.append(rate)

    def _count(self, trainer: Trainer, pl_module: Any) -> float | None:
        """Add the images and seconds of the epoch until now; returns its rate, None if nothing was trained."""
        watch: Stopwatch = pl_module.stopwatch
        steps, data = trainer.global_step - self._first_step, datamodule_of(trainer)
        if self._started is None or not steps:
            return None
        seconds, self._started = watch.training_clock() - self._started, None
        images = min(steps * data.step_size, data.size("train"))
        watch.num_images += images
        watch.seconds["training"] += seconds
        return images / max(seconds, 1e-9)
