"""Resuming a run: checks before anything is written, and the position at which Lightning's loops continue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from vae_lab.data.datamodule import ImageDataModule, final_step
from vae_lab.runs.checkpoint_io import BEST, load_checkpoint
from vae_lab.runs.resume import read_summary
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import write_json

# Keys that a checkpoint needs for a resume.
REQUIRED_STATE = (
    *("global_step", "state_dict", "optimizer_states", "callbacks", "loops"),
    *("steps_per_epoch", "step_log", "nonfinite_policy", "kl_per_dim", "metrics"),
)


def prepare_resume(
    resume: str,
    checkpoint: dict[str, Any],
    folder: Path,
    trainer: Trainer,
    data: ImageDataModule,
    changed: bool,
    accepts_data: bool = False,
) -> None:
    """Check that the run can go on, and mark it as unfinished.

    changed: whether the command line changes the config. UsageError, with nothing changed: the run is complete, already
    past the requested end, or would have another number of steps per epoch, on which the order of the images depends;
    or, unless `accepts_data`, the images are others.
    """
    data.trainer = trainer  # on whose processes the number of steps depends
    before, steps_per_epoch = read_summary(folder), checkpoint["steps_per_epoch"]
    if (best := folder / "checkpoints" / BEST).exists():
        load_checkpoint(best, needed=REQUIRED_STATE)  # a damaged one would fail only after training, at the test
    if steps_per_epoch != data.steps_per_epoch:
        raise UsageError(
            f"resume={resume}: the run has {steps_per_epoch} steps per epoch, this command gives "
            f"{data.steps_per_epoch}\nkeep trainer.limit_train_batches, trainer.devices and the images unchanged; "
            "init_from=RUN starts a new run from its weights"
        )
    if checkpoint.get("data_checksum", data.checksum) != data.checksum and not accepts_data:
        raise UsageError(
            f"resume={resume}: the images or labels are not those that the run was trained on\n"
            "restore them; or go on with these: data.changed=accept; init_from=RUN starts a new run from its weights"
        )
    done, end = checkpoint["global_step"], final_step(trainer, steps_per_epoch)
    completed = before.get("status") == "completed"
    if (completed and (done == end or not changed)) or (end is not None and done > end):
        asked = f", and the requested end is step {end}" if end is not None else ""
        raise UsageError(
            f"resume={folder}: nothing is left to do, the run has {done} steps ({done // steps_per_epoch} epochs)"
            f"{asked}\nto train longer, set trainer.max_epochs (or trainer.max_steps) above that"
        )
    if trainer.is_global_zero:
        for unfinished in (folder / "checkpoints").glob(".*"):  # of a session that was killed while it saved
            unfinished.unlink()
        if completed:  # if this session is killed, the run must count as unfinished
            write_json(folder / "summary.json", before | {"status": "interrupted"})


def continue_at_step(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Change a checkpoint so that Lightning starts the epoch of its step; the data module shortens that epoch.

    States of callbacks that this trainer lacks are dropped, and of Timer, since max_time limits one session.
    """
    steps, loop = checkpoint["global_step"], trainer.fit_loop.state_dict()
    for when in ("total", "current"):
        for event in ("ready", "started", "processed", "completed"):
            loop["epoch_progress"][when][event] = steps // checkpoint["steps_per_epoch"]
    for event in ("ready", "completed"):
        loop["epoch_loop.manual_optimization.optim_step_progress"]["total"][event] = steps
    checkpoint["loops"]["fit_loop"] = loop
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    present = {callback.state_key for callback in callbacks if not isinstance(callback, Timer)}
    checkpoint["callbacks"] = {key: state for key, state in checkpoint["callbacks"].items() if key in present}
