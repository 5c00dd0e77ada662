"""Training throughput in images per second, and the seconds spent on training and validation."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import Any, cast

from lightning.pytorch import Callback, Trainer

from vae_lab.data.datamodule import datamodule_of
from vae_lab.utils.stopwatch import Stopwatch

BESIDE = ("pictures", "checkpoints")  # parts of an epoch that training waits for


class Throughput(Callback):
    """Measures images per second of each epoch. Must come before the callbacks that draw and save."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.num_images = 0  # trained on
        self._started = self._beside = self._validating = 0.0
        self._first_step = 0

    @property
    def images_per_second(self) -> float | None:
        """Median over the epochs after the first, which includes start-up costs; the first if it is the only one."""
        rates = self.rates[1:] or self.rates
        return statistics.median(rates) if rates else None

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self._started, self._beside = time.perf_counter(), _seconds_beside(trainer)
        self._first_step = trainer.global_step

    def so_far(self, trainer: Trainer) -> float:
        """Images per second of the current epoch until now."""
        return self._images(trainer) / max(self._seconds(trainer), 1e-9)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._stop(trainer, pl_module)
        self._validating = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.stopwatch.seconds["validation"] += time.perf_counter() - self._validating

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """End the epoch's measurement if no validation did."""
        self._stop(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Count the images and seconds of a partial epoch, but not its rate."""
        if self._started and trainer.global_step > self._first_step:
            self._count(trainer)

    def _stop(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking or not self._started or trainer.global_step == self._first_step:
            return
        pl_module.log_steps()  # synchronises with the device, so that its work is counted
        self.rates.append(self.so_far(trainer))
        self._count(trainer)

    def _count(self, trainer: Trainer) -> None:
        self.num_images += self._images(trainer)
        _seconds(trainer)["training"] += self._seconds(trainer)
        self._started = 0.0

    def _images(self, trainer: Trainer) -> int:
        steps, data = trainer.global_step - self._first_step, datamodule_of(trainer)
        return min(steps * data.step_size * trainer.world_size, data.size("train"))

    def _seconds(self, trainer: Trainer) -> float:
        return time.perf_counter() - self._started - _seconds_beside(trainer) + self._beside


def _seconds(trainer: Trainer) -> defaultdict[str, float]:
    watch: Stopwatch = cast(Any, trainer.lightning_module).stopwatch
    return watch.seconds


def _seconds_beside(trainer: Trainer) -> float:
    seconds = _seconds(trainer)
    return sum(seconds[part] for part in BESIDE)
