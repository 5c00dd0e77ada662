"""A run that is resumed: whether anything is left to do, and its directory brought back to the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from vae_lab.callbacks.event_files import truncate_event_files
from vae_lab.data.datamodule import ImageDataModule, final_step
from vae_lab.runs.checkpoint_io import BEST, finish_interrupted_saves, load_checkpoint
from vae_lab.runs.resume import read_summary, resume_checkpoint
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import write_json

# What a run goes on from.
REQUIRED_STATE = (
    *("global_step", "state_dict", "optimizer_states", "callbacks", "loops"),
    *("steps_per_epoch", "epoch_end", "step_log", "nonfinite_policy", "kl_per_dim", "metrics"),
)


def roll_back_run(resume: str, folder: Path, trainer: Trainer, data: ImageDataModule, changed: bool) -> None:
    """Undo what a run wrote after the checkpoint.

    changed: whether the command line asks for something else than before. UsageError: the run is complete, already past
    the end asked for, or would not have the same epochs; nothing was changed then.
    """
    before = read_summary(folder)
    checkpoint = load_checkpoint(resume_checkpoint(resume), needed=REQUIRED_STATE)
    if (best := folder / "checkpoints" / BEST).exists():
        load_checkpoint(best, needed=REQUIRED_STATE)  # or training would end where its test begins
    _require_same_epochs(resume, checkpoint["steps_per_epoch"], data.steps_per_epoch)
    completed = before.get("status") == "completed"
    _require_something_to_do(folder, checkpoint["global_step"], completed, changed, trainer, data)
    if trainer.is_global_zero:
        finish_interrupted_saves(folder / "checkpoints", checkpoint["global_step"])
        truncate_event_files(trainer, checkpoint)
        if completed:  # no longer: killed, it has to be gone on with
            write_json(folder / "summary.json", before | {"status": "interrupted"})


def _require_something_to_do(
    folder: Path, done: int, completed: bool, changed: bool, trainer: Trainer, data: ImageDataModule
) -> None:
    end = final_step(trainer, data.steps_per_epoch)
    finished = completed and (done == end or not changed)
    if finished or (end is not None and done > end):
        asked = f", and the end asked for is step {end}" if end is not None else ""
        raise UsageError(
            f"resume={folder}: nothing is left to do, "
            f"it has {done} steps ({done // data.steps_per_epoch} epochs){asked}\n"
            "to train longer: trainer.max_epochs (or trainer.max_steps) above that"
        )


def _require_same_epochs(resume: str, before: Any, now: int) -> None:
    """The order of the images is a function of the place in the epoch."""
    if before != now:
        raise UsageError(
            f"resume={resume}: its epochs have {before} steps, and would have {now} now\n"
            "leave trainer.limit_train_batches and trainer.devices as they were, and the images; "
            "init_from=RUN starts a new run from its weights"
        )
