"""Stops a run after a signal where nothing is lost: between calls of the trainer, and after a complete epoch."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from vae_lab.callbacks.checkpoint import LastCheckpoint, can_stop_here
from vae_lab.data.datamodule import is_within_epoch
from vae_lab.utils.signals import StopSignals

GRACE = 2.0  # seconds that a validation may still take after a signal: schedulers kill a job within seconds


class StopOnSignal(Checkpoint):
    """Saves last.ckpt with `last` and raises Interrupted once `stop_signals` has received a signal.

    A validation is completed first if that takes at most GRACE seconds; if not, last.ckpt stays as it was.

    Must be the last callback, so that the others have completed the epoch before it stops the run.
    """

    def __init__(self, stop_signals: StopSignals, last: LastCheckpoint | None) -> None:
        self.stop_signals, self.last = stop_signals, last

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Reinstall our handlers: Lightning's would end the process by an exit with code 0 at its next check."""
        self.stop_signals.install()
        if trainer.world_size == 1:
            self.stop_signals.raise_if_requested()

    on_sanity_check_start = on_test_start = on_train_start

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        if not is_within_epoch(trainer):
            self._stop(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if can_stop_here(trainer):
            self._stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop without saving if the validation takes too long."""
        # With several processes the numbers of batches may differ, so they can agree only at the end.
        if not trainer.sanity_checking and trainer.world_size == 1 and self.stop_signals.seconds_since > GRACE:
            self.stop_signals.raise_if_requested()

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Raise without saving: training is saved by then."""
        if trainer.world_size == 1:
            self.stop_signals.raise_if_requested()

    def _stop(self, trainer: Trainer) -> None:
        """Save and stop, in all processes if any has received a signal: a single one would deadlock the others."""
        requested = self.stop_signals.requested or 0
        if trainer.world_size > 1:
            mine = torch.tensor(requested, device=trainer.strategy.root_device)
            requested = int(trainer.strategy.reduce(mine, reduce_op="max"))
        if requested:  # 0: a signal that arrived meanwhile is handled at the next call
            self.stop_signals.requested = requested
            if self.last is not None:
                self.last.save_now(trainer)
            self.stop_signals.raise_if_requested()
