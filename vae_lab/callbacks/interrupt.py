"""A signal that came is answered where stopping is safe: between calls of the trainer and validation batches."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from vae_lab.callbacks.checkpoint import LastCheckpoint
from vae_lab.callbacks.images import image_loggers
from vae_lab.utils.signals import StopSignals


class StopOnSignal(Checkpoint):
    """Saves last.ckpt and raises Interrupted once `interruption` has noted a signal.

    Stands behind all others: what it stops at the end of an epoch has seen all of that.
    """

    def __init__(self, stop_signals: StopSignals) -> None:
        self.stop_signals = stop_signals

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Lightning's own handlers would end the process between an epoch and its checkpoint."""
        self.stop_signals.install()

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """Between epochs."""
        self._stop(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Between calls."""
        self._stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Between batches; the validation is made up for on resume."""
        # Processes may have unequal numbers of batches, so several cannot agree before the end.
        if not trainer.sanity_checking and trainer.world_size == 1:
            self._stop(trainer)

    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """The training is saved by then."""
        if trainer.world_size == 1:
            self.stop_signals.raise_if_requested()

    def _agreed(self, trainer: Trainer) -> bool:
        """All processes stop where one was asked to; alone, one would wait for the others for ever."""
        if trainer.world_size == 1:
            return self.stop_signals.requested is not None
        mine = torch.tensor(self.stop_signals.requested or 0, device=trainer.strategy.root_device)
        agreed = int(trainer.strategy.reduce(mine, reduce_op="max"))
        if agreed:  # else one that came meanwhile is for the next time
            self.stop_signals.requested = agreed
        return bool(agreed)

    def _stop(self, trainer: Trainer) -> None:
        if not self._agreed(trainer):
            return
        self._save(trainer)
        busy = [callback for callback in image_loggers(trainer) if callback.busy]
        for callback in busy:
            callback.finish(self.stop_signals.requested)
        if busy:
            self._save(trainer)  # with the pictures of its time
        self.stop_signals.raise_if_requested()

    def _save(self, trainer: Trainer) -> None:
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.save_now(trainer)
