"""Prepares a resume: checks that there is something left to do, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from vae_lab.data.datamodule import ImageDataModule, final_step
from vae_lab.runs.checkpoint_io import BEST, load_checkpoint
from vae_lab.runs.resume import read_summary, resume_checkpoint
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import write_json

# Keys that a checkpoint needs for a resume.
REQUIRED_STATE = (
    *("global_step", "state_dict", "optimizer_states", "callbacks", "loops"),
    *("steps_per_epoch", "step_log", "nonfinite_policy", "kl_per_dim", "metrics"),
)


def load_resumed(resume: str) -> dict[str, Any]:
    """The checkpoint to resume from. UsageError: missing, damaged, or without a part of the state."""
    return load_checkpoint(resume_checkpoint(resume), needed=REQUIRED_STATE)


def prepare_resume(
    resume: str, checkpoint: dict[str, Any], folder: Path, trainer: Trainer, data: ImageDataModule, changed: bool
) -> None:
    """Check that the run can go on, and mark it as unfinished.

    changed: whether the command line changes the config. UsageError, with nothing changed: the run is complete, already
    past the requested end, or would have another number of steps per epoch.
    """
    before = read_summary(folder)
    if (best := folder / "checkpoints" / BEST).exists():
        load_checkpoint(best, needed=REQUIRED_STATE)  # a damaged one would fail only after training, at the test
    _require_same_epochs(resume, checkpoint["steps_per_epoch"], data.steps_per_epoch)
    completed = before.get("status") == "completed"
    _require_something_to_do(folder, checkpoint["global_step"], completed, changed, trainer, data)
    if trainer.is_global_zero:
        for partial in (folder / "checkpoints").glob(".*.partial"):  # of a session that was killed
            partial.unlink()
        if completed:  # if this session is killed, the run must count as unfinished
            write_json(folder / "summary.json", before | {"status": "interrupted"})


def _require_something_to_do(
    folder: Path, done: int, completed: bool, changed: bool, trainer: Trainer, data: ImageDataModule
) -> None:
    end = final_step(trainer, data.steps_per_epoch)
    finished = completed and (done == end or not changed)
    if finished or (end is not None and done > end):
        asked = f", and the requested end is step {end}" if end is not None else ""
        raise UsageError(
            f"resume={folder}: nothing is left to do, "
            f"the run has {done} steps ({done // data.steps_per_epoch} epochs){asked}\n"
            "to train longer, set trainer.max_epochs (or trainer.max_steps) above that"
        )


def _require_same_epochs(resume: str, before: Any, now: int) -> None:
    """Raise UsageError if the steps per epoch differ: the order of the images depends on the step within the epoch."""
    if before != now:
        raise UsageError(
            f"resume={resume}: the run has {before} steps per epoch, this command gives {now}\n"
            "keep trainer.limit_train_batches, trainer.devices and the images unchanged; "
            "init_from=RUN starts a new run from its weights"
        )
