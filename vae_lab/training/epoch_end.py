"""Complete the end of an epoch whose validation, pictures and checks were missed because of an interruption.

A run resumed from such a step enters the epoch again, with no steps left in it. So does a run that was stopped after
its last step: everything that follows training is repeated.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from vae_lab.data.datamodule import datamodule_of, final_step, has_validation, is_within_epoch


class EpochEnd:
    """The steps of the last validation and of the last complete epoch end, and the recovery of a missed one."""

    def __init__(self) -> None:
        self.validated_at = 0
        self.ended_at = 0
        self._max_steps: int | None = None

    def state_dict(self) -> dict[str, int]:
        return {"validated_at": self.validated_at, "ended_at": self.ended_at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.validated_at, self.ended_at = state["validated_at"], state["ended_at"]

    def resume(self, trainer: Trainer, steps: int) -> dict[str, Any]:
        """The state of a fit loop that resumes after `steps` optimiser steps."""
        data = datamodule_of(trainer)
        epochs, at = divmod(steps, data.steps_per_epoch)
        end = final_step(trainer, data.steps_per_epoch)
        data.finishing_epoch = (epochs > 0 and at == 0 and self.ended_at != steps) or (end is not None and steps >= end)
        if data.finishing_epoch and at == 0:
            epochs -= 1
        if data.finishing_epoch and trainer.max_steps == steps:  # or Lightning would end the fit loop at once
            self._max_steps, trainer.fit_loop.epoch_loop.max_steps = steps, steps + 1
        return fit_loop_progress(trainer.fit_loop.state_dict(), epochs, steps)

    def run_missed_validation(self, trainer: Trainer) -> None:
        """Run the validation of the interrupted epoch, if it was missed."""
        if not self._has_missed_validation(trainer):
            return
        validation = trainer.fit_loop.epoch_loop.val_loop
        validation.restarting = False
        trainer.validating = True
        validation.run()
        trainer.training = True

    def _has_missed_validation(self, trainer: Trainer) -> bool:
        """Whether the interrupted epoch ends with a validation that has not been run."""
        data, step = datamodule_of(trainer), trainer.global_step
        epoch = -(-step // data.steps_per_epoch)
        due = epoch % (trainer.check_val_every_n_epoch or 1) == 0
        return data.finishing_epoch and due and self.validated_at != step and has_validation(trainer)

    def last_step(self, trainer: Trainer) -> int | None:
        """The last step of training, also while `resume` has raised Lightning's `max_steps`."""
        end = final_step(trainer, datamodule_of(trainer).steps_per_epoch)
        return end if end is None or self._max_steps is None else min(end, self._max_steps)

    def epoch_started(self, trainer: Trainer) -> None:
        """Restore the `max_steps` that `resume` raised, now that the epoch has begun."""
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, None

    def epoch_finished(self, trainer: Trainer) -> None:
        """Mark the end of the epoch as complete except for its checkpoints."""
        datamodule_of(trainer).finishing_epoch = False
        if not is_within_epoch(trainer):
            self.ended_at = trainer.global_step


def drop_absent_callback_states(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Drop the states of callbacks this trainer lacks, and of Timer, since max_time limits one session."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    present = {callback.state_key for callback in callbacks if not isinstance(callback, Timer)}
    checkpoint["callbacks"] = {key: state for key, state in checkpoint["callbacks"].items() if key in present}


def fit_loop_progress(fresh: dict[str, Any], epochs: int, steps: int) -> dict[str, Any]:
    """The state of a fit loop after `epochs` whole epochs and `steps` optimiser steps, none in progress."""
    for when in ("total", "current"):
        for event in ("ready", "started", "processed", "completed"):
            fresh["epoch_progress"][when][event] = epochs
    for event in ("ready", "completed"):
        fresh["epoch_loop.manual_optimization.optim_step_progress"]["total"][event] = steps
    return fresh
