"""TensorBoard's event files across a resume: truncated to the checkpoint, so that no value appears twice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from vae_lab.callbacks.tensorboard import writers
from vae_lab.utils.files import fsync, fsync_folder

KEY = "event_files"  # checkpoint entry: file name to length in bytes


class EventFileLengths(Callback):
    """Stores in each checkpoint the lengths of the flushed event files.

    Covers all event files in the run directory, of every logger and every session.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Flush and fsync the event files before the checkpoint is written."""
        if not trainer.is_global_zero:
            return
        for writer in writers(trainer):
            writer.flush()
        run = Path(trainer.default_root_dir)
        for writer in writers(trainer):  # files of earlier sessions are on the disk already
            for path in event_files(Path(writer.get_logdir()))[-1:]:
                with path.open("rb") as file:
                    fsync(file)
        checkpoint[KEY] = {str(path.relative_to(run)): path.stat().st_size for path in event_files(run)}


def truncate_event_files(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Remove what was logged after the checkpoint. Call on the first process, before anything is logged."""
    if KEY not in checkpoint:
        return
    sizes: dict[str, int] = checkpoint[KEY]
    run = Path(trainer.default_root_dir)
    for path in event_files(run):
        name = str(path.relative_to(run))
        if name not in sizes:
            path.unlink()  # of a session that was killed before its first checkpoint
        elif path.stat().st_size > sizes[name]:
            os.truncate(path, sizes[name])
        fsync_folder(path.parent)


def event_files(folder: Path) -> list[Path]:
    """The event files in a folder and its subfolders, sorted by name: the oldest first."""
    return sorted(folder.rglob("events.out.tfevents.*"))
