"""checkpoints/best.ckpt and checkpoints/last.ckpt of a run directory."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from vae_lab.data.datamodule import datamodule_of, final_step, has_validation, is_within_epoch
from vae_lab.runs.checkpoint_io import BEST, LAST, PREVIOUS_BEST, AtomicCheckpointIO
from vae_lab.training.nonfinite import NonFiniteLoss


def checkpoint_folder(trainer: Trainer) -> Path:
    """`checkpoints` in the run directory."""
    return Path(trainer.default_root_dir) / "checkpoints"


def best_checkpoint(trainer: Trainer) -> Path | None:
    """best.ckpt of this run (not of a run it was resumed from); None if it keeps none."""
    kept = any(isinstance(it, BestCheckpoint) and it.save_top_k != 0 for it in trainer.checkpoint_callbacks)
    best = checkpoint_folder(trainer) / BEST
    return best if kept and best.exists() else None


class BestCheckpoint(ModelCheckpoint):
    """Keeps the weights with the best `monitor` at a validation; without validation images, the last ones.

    save_top_k: number of checkpoints to keep; -1: all; 0: none, and the test uses the last weights. If several are
    kept, each is `step=<optimiser step>.ckpt`, and best.ckpt is a hard link to (or a copy of) the best.
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
        """Defer writes of best.ckpt until last.ckpt is saved: it may improve faster than the disk can write."""
        super().on_train_start(trainer, pl_module)
        writer = trainer.strategy.checkpoint_io
        saved_otherwise = any(isinstance(callback, LastCheckpoint) for callback in trainer.checkpoint_callbacks)
        if isinstance(writer, AtomicCheckpointIO) and saved_otherwise and not self._keeps_several:
            writer.deferred.add(Path(self.dirpath or "") / BEST)
        self._link_best(trainer)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        best = Path(filepath)
        if is_within_epoch(trainer) and best.is_file():
            # Stopping within an epoch adds a validation that a longer run does not have: it resumes with the old best.
            _link_or_copy(best, best.with_name(PREVIOUS_BEST))
        super()._save_checkpoint(trainer, filepath)
        self._link_best(trainer)

    @property
    def _keeps_several(self) -> bool:
        return self.filename != "best"

    def _link_best(self, trainer: Trainer) -> None:
        best = Path(self.best_model_path)
        if not (self._keeps_several and trainer.is_global_zero and self.best_model_path and best.is_file()):
            return
        _link_or_copy(best, best.with_name(BEST))


class LastCheckpoint(Checkpoint):
    """Saves the state to resume from: after an epoch, every `every_n_steps`, and at the end of training.

    every_n_seconds: minimum time between saves at the ends of epochs, so that short epochs are not dominated by saving.
    """

    def __init__(self, every_n_seconds: float = 10.0, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"callbacks.last.every_n_steps must be at least 1, or null; found {every_n_steps}")
        if every_n_seconds < 0:
            raise ValueError(f"callbacks.last.every_n_seconds must be at least 0; found {every_n_seconds}")
        self.every_n_seconds, self.every_n_steps = every_n_seconds, every_n_steps
        self._saved_at = time.monotonic()
        self._saved_step = -1

    def save_now(self, trainer: Trainer) -> None:
        """Save last.ckpt at the current step, within an epoch or at its end."""
        with cast(Any, trainer.lightning_module).stopwatch.timed("checkpoints"):
            trainer.save_checkpoint(checkpoint_folder(trainer) / LAST)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._saved_step = checkpoint["global_step"]

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Save where `every_n_steps` is due or training stops, if within an epoch; at its end, after the validation.

        A stop within an epoch is saved before its extra validation and metrics row, which a resumed run must not have.
        """
        if is_within_epoch(trainer) and (self._is_due(trainer.global_step) or _training_ends(trainer)):
            self.save_now(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save if due by steps or by time."""
        if is_within_epoch(trainer):
            return
        step = trainer.global_step
        passed = trainer.strategy.broadcast(time.monotonic() - self._saved_at)  # one decision for all processes
        if self._is_due(step) or passed >= self.every_n_seconds:
            self.save_now(trainer)

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        """Save the end of training; a stop within an epoch was saved before its extra validation."""
        if not is_within_epoch(trainer) or self._saved_step != trainer.global_step:
            self.save_now(trainer)
        elif isinstance(writer := trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            writer.flush()  # best.ckpt of the extra validation, beside the state before it

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Save after a non-finite loss: the weights are still valid."""
        if isinstance(exception, NonFiniteLoss) and trainer.global_step and trainer.training:
            with suppress(NonFiniteLoss):
                self.save_now(trainer)

    def _is_due(self, step: int) -> bool:
        return self.every_n_steps is not None and step % self.every_n_steps == 0 and step != self._saved_step


def _link_or_copy(file: Path, name: Path) -> None:
    partial = name.with_name(f".{name.name}.{os.getpid()}.partial")
    try:
        os.link(file, partial)
    except OSError:
        shutil.copyfile(file, partial)
    partial.replace(name)
    partial.unlink(missing_ok=True)  # renaming onto a hard link of the same file does nothing


def _training_ends(trainer: Trainer) -> bool:
    return trainer.should_stop or trainer.global_step == final_step(trainer, datamodule_of(trainer).steps_per_epoch)


def _relocated(path: str | None, folder: Path) -> str:
    """The file of this name in `folder`: the run directory may have been moved."""
    return str(folder / Path(path).name) if path else ""
