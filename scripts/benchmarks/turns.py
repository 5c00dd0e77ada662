"""Callbacks that measure our side within its own trainer and wait for the other side in between."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

from lightning.pytorch import Callback, Trainer

from scripts.benchmarks.processes import family, running
from scripts.benchmarks.workers import Turn
from vae_lab.callbacks import Throughput
from vae_lab.data.datamodule import datamodule_of


def rates_of(trainer: Trainer) -> list[float]:
    """Images per second of the training loop in each epoch so far; pictures and validation are left out."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, Throughput)).rates


def wait_for_copies() -> None:
    """Until no copy of this process draws any more, for the other side is to have the machine to itself."""
    while any(running(pid) for pid in family(os.getpid()) if pid != os.getpid()):
        time.sleep(0.005)


class Training(Callback):
    """Images per second of the training loop, over `epochs` epochs a repeat.

    What is drawn in the background after an epoch is drawn beside the next one of ours.
    """

    place = 1  # after Throughput, before those that draw and save

    def __init__(self, turn: Turn, epochs: int = 1) -> None:
        self.turn, self.epochs = turn, epochs

    def on_train_start(self, *_: Any) -> None:
        """Everything is set up."""
        self.turn()

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """The epoch's rate is known."""
        rates = rates_of(trainer)
        if len(rates) % self.epochs == 0:
            wait_for_copies()
            self.turn(statistics.harmonic_mean(rates[-self.epochs :]))  # of epochs of one length: images over seconds


class Validation(Callback):
    """Images per second of the validation between epochs, from its first batch to its logged metrics."""

    place = 0  # before those that save and print at its end

    def __init__(self, turn: Turn, passes: int = 1) -> None:
        self.turn, self.passes = turn, passes
        self.started = 0.0
        self.seconds: list[float] = []

    def on_train_start(self, *_: Any) -> None:
        """Everything is set up."""
        self.turn()

    def on_validation_epoch_start(self, *_: Any) -> None:
        """The first batch comes next."""
        self.started = time.perf_counter()

    def on_validation_end(self, *_: Any) -> None:
        """The metrics are computed and logged."""
        self.seconds.append(time.perf_counter() - self.started)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """The epoch before this one is over."""
        if len(self.seconds) == self.passes:
            self.turn(self.passes * datamodule_of(trainer).size("val") / sum(self.seconds))
            self.seconds = []


class ImportanceBound(Callback):
    """Images per second of the importance-weighted bound, of the model that training starts from."""

    place = 0

    def __init__(self, turn: Turn, num_images: int, num_samples: int, chunk: int) -> None:
        self.turn, self.num_images, self.num_samples, self.chunk = turn, num_images, num_samples, chunk

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """All of it: training never starts."""
        from vae_lab.metrics.importance import importance_bound

        x, _ = datamodule_of(trainer).example_images("test", self.num_images)
        model = pl_module.evaluation_model.eval()
        self.turn()
        while True:
            start = time.perf_counter()
            importance_bound(model, x, self.num_samples, chunk=self.chunk)
            self.turn(len(x) / (time.perf_counter() - start))


class StopAfterFirstStep(Callback):
    """Ends the process as soon as a step was made."""

    place = 0

    def on_train_batch_end(self, *_: Any) -> None:
        """That was it."""
        os._exit(0)
