"""TensorBoard's event files across a resume: cut back to the checkpoint, so that no value is there twice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from vae_lab.callbacks.tensorboard import loggers, writers
from vae_lab.checkpoints import sync_folder

KEY = "event_files"  # in a checkpoint: name of each file to its bytes


class EventFiles(Callback):
    """Writes into each checkpoint how long the event files are, once all that was logged is in them."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Before the checkpoint is on the disk, what was logged until then is."""
        if not trainer.is_global_zero:
            return
        for writer in writers(trainer):
            writer.flush()
        found = [path for folder in folders(trainer) for path in event_files(folder)]
        for path in found[-1:]:  # the others are of earlier sessions
            _sync(path)
        checkpoint[KEY] = {path.name: path.stat().st_size for path in found}


def cut_back(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Undo what was logged after the checkpoint, before anything is logged again. On the first process."""
    if KEY not in checkpoint:
        return
    sizes: dict[str, int] = checkpoint[KEY]
    for folder in folders(trainer):
        for path in event_files(folder):
            if path.name not in sizes:
                path.unlink()
            elif path.stat().st_size > sizes[path.name]:
                os.truncate(path, sizes[path.name])
        if folder.is_dir():
            sync_folder(folder)


def folders(trainer: Trainer) -> list[Path]:
    """Where the event files are."""
    return [Path(logger.log_dir) for logger in loggers(trainer)]


def event_files(folder: Path) -> list[Path]:
    """The files of all sessions, the oldest first."""
    return sorted(folder.glob("events.out.tfevents.*"))


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
