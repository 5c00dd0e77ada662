"""checkpoints/best.ckpt and checkpoints/last.ckpt of a run directory, and stopping a run where nothing is lost."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from vae_lab.callbacks.tensorboard import writers
from vae_lab.data.datamodule import datamodule_of, final_step, has_validation, is_within_epoch
from vae_lab.runs.checkpoint_io import BEST, LAST
from vae_lab.training.nonfinite import NonFiniteLoss
from vae_lab.utils.files import write_atomically
from vae_lab.utils.signals import StopSignals

MIN_RATIO = 20  # of the time between saves to the time of one
GRACE = 2.0  # seconds that a validation may still take after a signal: schedulers kill a job within seconds


def checkpoint_folder(trainer: Trainer) -> Path:
    """`checkpoints` in the run directory."""
    return Path(trainer.default_root_dir) / "checkpoints"


def keeps_best(trainer: Trainer) -> bool:
    """Whether this session keeps best.ckpt; the run it was resumed from may have left one."""
    return any(isinstance(it, BestCheckpoint) and it.save_top_k != 0 for it in trainer.checkpoint_callbacks)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the weights with the best `monitor` at a validation; without validation images, the last ones.

    save_top_k: number of checkpoints to keep; -1: all; 0: none, and the test uses the last weights. If several are
    kept, each is `step=<optimiser step>.ckpt`, and best.ckpt is a copy of the best.
    """

    def __init__(self, monitor: str = "val/elbo", mode: str = "max", save_top_k: int = 1) -> None:
        if save_top_k < -1:
            raise ValueError(f"callbacks.best.save_top_k must be at least 0, or -1 to keep all; found {save_top_k}")
        if mode not in ("max", "min"):
            raise ValueError(f"callbacks.best.mode must be max or min; found {mode}")
        super().__init__(
            filename="best" if save_top_k in (0, 1) else "step={step:08d}",
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self._copied: Path | None = None

    @property
    def state_key(self) -> str:
        """Constant, so that a run can resume with another `save_top_k`."""
        return "BestCheckpoint"

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self.dirpath = str(checkpoint_folder(trainer))
        if not has_validation(trainer):
            self.monitor, self.save_top_k = None, min(self.save_top_k, 1)  # all or the last: no score ranks them
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state with paths in the present run directory, without checkpoints that are missing there."""
        here = Path(self.dirpath or "")
        moved = {name: _relocated(state_dict.get(name), here) for name in ("best_model_path", "kth_best_model_path")}
        kept = {_relocated(path, here): score for path, score in state_dict["best_k_models"].items()}
        kept = {path: score for path, score in kept.items() if Path(path).is_file()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": kept, "dirpath": self.dirpath})
        self.current_score = state_dict["current_score"]
        if self.kth_best_model_path not in kept:
            self.kth_best_model_path = (min if self.mode == "max" else max)(kept, key=kept.__getitem__, default="")

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._copy_best(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        with pl_module.stopwatch.timed("checkpoints"):
            super().on_validation_end(trainer, pl_module)
            self._copy_best(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        with pl_module.stopwatch.timed("checkpoints"):
            super().on_train_epoch_end(trainer, pl_module)
            self._copy_best(trainer)

    def _copy_best(self, trainer: Trainer) -> None:
        best = Path(self.best_model_path)
        if self.filename != "best" and trainer.is_global_zero and best != self._copied and best.is_file():
            write_atomically(best.with_name(BEST), best.read_bytes())
            self._copied = best


class LastCheckpoint(Checkpoint):
    """Saves the state to resume from: between calls of the trainer, after a complete epoch, and at the end of training.

    Never between the last step of an epoch and the end of its validation, so a resumed run has nothing to repeat.
    every_n_seconds: minimum time between saves; at least 20 times what a save takes, so that saving stays below 5%.
    every_n_steps: saves also at these optimiser steps; at the end of an epoch, after its validation.
    """

    def __init__(self, every_n_seconds: float = 10.0, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"callbacks.last.every_n_steps must be at least 1, or null; found {every_n_steps}")
        if every_n_seconds < 0:
            raise ValueError(f"callbacks.last.every_n_seconds must be at least 0; found {every_n_seconds}")
        self.every_n_seconds, self.every_n_steps = every_n_seconds, every_n_steps
        self._saved_at, self._saved_step, self._seconds = time.monotonic(), -1, 0.0

    def save_now(self, trainer: Trainer) -> None:
        """Save last.ckpt at the current step, once; and flush TensorBoard's events up to it."""
        if trainer.global_step == self._saved_step:
            return
        start = time.monotonic()
        with cast(Any, trainer.lightning_module).stopwatch.timed("checkpoints"):
            trainer.save_checkpoint(checkpoint_folder(trainer) / LAST)
            for writer in writers(trainer):
                writer.flush()
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self._seconds = self._saved_at - start

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._saved_step = checkpoint["global_step"]

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save within an epoch, where due. Several processes save by time after an epoch only, where they agree."""
        if can_stop_here(trainer) and (
            self._steps_passed(trainer) or (trainer.world_size == 1 and self._time_passed())
        ):
            self.save_now(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        passed = trainer.strategy.broadcast(self._time_passed())  # one decision for all processes
        if not is_within_epoch(trainer) and (self._steps_passed(trainer) or passed):
            self.save_now(trainer)

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        self._saved_step = -1  # a stop within an epoch has been validated since
        self.save_now(trainer)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Save after a non-finite loss: the weights are still valid."""
        if isinstance(exception, NonFiniteLoss) and is_within_epoch(trainer):
            with suppress(NonFiniteLoss):
                self.save_now(trainer)

    def _steps_passed(self, trainer: Trainer) -> bool:
        return self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0

    def _time_passed(self) -> bool:
        return time.monotonic() - self._saved_at >= max(self.every_n_seconds, MIN_RATIO * self._seconds)


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


def can_stop_here(trainer: Trainer) -> bool:
    """Whether training can be saved and stopped after this call: the epoch, and so its validation, is not due yet."""
    ends = trainer.should_stop or trainer.global_step == final_step(trainer, datamodule_of(trainer).steps_per_epoch)
    return is_within_epoch(trainer) and not ends


def _relocated(path: str | None, folder: Path) -> str:
    """The file of this name in `folder`: the run directory may have been moved."""
    return str(folder / Path(path).name) if path else ""
