"""TensorBoard's event files across a resume: cut back to the checkpoint, so that no value is there twice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from vae_lab.callbacks.tensorboard import writers
from vae_lab.utils.files import fsync, fsync_folder

KEY = "event_files"  # in a checkpoint: name of each file to its bytes


class EventFileLengths(Callback):
    """Writes into each checkpoint how long the event files are, once all that was logged is in them.

    All that lie in the run directory, whichever logger of whichever session wrote them.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Before the checkpoint is on the disk, what was logged until then is."""
        if not trainer.is_global_zero:
            return
        for writer in writers(trainer):
            writer.flush()
        run = Path(trainer.default_root_dir)
        for writer in writers(trainer):  # the files of earlier sessions are on the disk
            for path in event_files(Path(writer.get_logdir()))[-1:]:
                with path.open("rb") as file:
                    fsync(file)
        checkpoint[KEY] = {str(path.relative_to(run)): path.stat().st_size for path in event_files(run)}


def truncate_event_files(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Undo what was logged after the checkpoint, before anything is logged again. On the first process."""
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
    """All in a folder and below it, by name: the oldest first."""
    return sorted(folder.rglob("events.out.tfevents.*"))
