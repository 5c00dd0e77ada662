"""How fast a run trains: images per second of the training loop, pictures and validation left out."""

from __future__ import annotations

import statistics
import time
from typing import Any

from lightning.pytorch import Callback, Trainer

from vae_lab.callbacks.images import ImageLogger
from vae_lab.data.module import data_of


class Throughput(Callback):
    """Images per second of each epoch, and of the epoch so far. Stands before the callbacks that draw."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self._started = self._drawing = 0.0
        self._first_step = 0

    @property
    def images_per_second(self) -> float | None:
        """The median over epochs after the first, which pays for warming up; of the first where it is alone."""
        rates = self.rates[1:] or self.rates
        return statistics.median(rates) if rates else None

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Start the clock."""
        self._started, self._drawing = time.perf_counter(), self._seconds_drawing(trainer)
        self._first_step = trainer.global_step

    def so_far(self, trainer: Trainer) -> float:
        """Images per second of this epoch until now."""
        steps = trainer.global_step - self._first_step
        images = min(steps * data_of(trainer).step_size * trainer.world_size, data_of(trainer).size("train"))
        seconds = time.perf_counter() - self._started
        return images / max(seconds - self._seconds_drawing(trainer) + self._drawing, 1e-9)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """The epoch's steps are done."""
        self._stop(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """The epoch's steps are done, where no validation came after them."""
        self._stop(trainer, pl_module)

    def _stop(self, trainer: Trainer, pl_module: Any) -> None:
        steps = trainer.global_step - self._first_step
        if trainer.sanity_checking or not self._started or not steps:
            return
        pl_module.log_steps()  # waits for the device, so that its work is counted
        self.rates.append(self.so_far(trainer))
        self._started = 0.0

    @staticmethod
    def _seconds_drawing(trainer: Trainer) -> float:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return sum(callback.seconds for callback in callbacks if isinstance(callback, ImageLogger))
