"""checkpoints/best.ckpt and checkpoints/last.ckpt of a run directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from vae_lab.checkpoints import LAST, AtomicCheckpointIO
from vae_lab.data.module import data_of


def checkpoint_folder(trainer: Trainer) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(trainer.default_root_dir) / "checkpoints"


class BestCheckpoint(ModelCheckpoint):
    """The weights with the best `monitor` at a validation; without validation images, the last ones."""

    def __init__(self, monitor: str = "val/elbo", mode: str = "max", save_top_k: int = 1) -> None:
        super().__init__(
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Find the run directory, and whether there is anything to monitor."""
        self.dirpath = str(checkpoint_folder(trainer))
        if data_of(trainer).size("val") == 0:
            self.monitor = None
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """From now on it may change faster than a disk follows."""
        super().on_train_start(trainer, pl_module)
        if isinstance(writer := trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            writer.may_wait.add(Path(self.dirpath or "") / f"{self.filename}.ckpt")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Write the one that waits, in time."""
        super().on_train_batch_end(trainer, *args)
        if isinstance(writer := trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            writer.look()


class LastCheckpoint(ModelCheckpoint):
    """The state to resume from: after an epoch, every `every_n_steps`, and at the end.

    every_n_seconds: epochs shorter than this share a checkpoint, so that short ones are not spent on saving.
    """

    def __init__(self, every_n_seconds: float = 10.0, every_n_steps: int | None = None) -> None:
        super().__init__(
            filename="last",
            save_top_k=1,
            every_n_train_steps=every_n_steps or 0,
            every_n_epochs=0 if every_n_steps else 1,
            enable_version_counter=False,
            save_on_train_epoch_end=not every_n_steps,
        )
        self.every_n_seconds = every_n_seconds
        self._saved_at = time.monotonic()

    @property
    def state_key(self) -> str:
        """Constant, so that a run resumes under another `every_n_steps`."""
        return "LastCheckpoint"

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Find the run directory."""
        self.dirpath = str(checkpoint_folder(trainer))
        super().setup(trainer, pl_module, stage)

    def save_now(self, trainer: Trainer) -> None:
        """Save whatever the trainer is doing; it resumes from this very step."""
        trainer.save_checkpoint(checkpoint_folder(trainer) / LAST)
        self._saved_at = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save, unless it was done a moment ago."""
        if self._every_n_epochs and time.monotonic() - self._saved_at >= self.every_n_seconds:
            self.save_now(trainer)

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        """The end of training is always saved."""
        self.save_now(trainer)
