"""checkpoints/best.ckpt and checkpoints/last.ckpt of a run directory."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from vae_lab.callbacks.images import image_loggers
from vae_lab.callbacks.workers import BackgroundError
from vae_lab.data.datamodule import datamodule_of, final_step, has_validation, is_within_epoch
from vae_lab.runs.checkpoint_io import BEST, LAST, PREVIOUS_BEST, AtomicCheckpointIO
from vae_lab.training.nonfinite import NonFiniteLoss

PATIENCE = 3  # times every_n_seconds, for pictures that are being drawn


def checkpoint_folder(trainer: Trainer) -> Path:
    """Where a run keeps its checkpoints."""
    return Path(trainer.default_root_dir) / "checkpoints"


def best_checkpoint(trainer: Trainer) -> Path | None:
    """The best weights that this run keeps, and not one that it was resumed from; None where it keeps none."""
    kept = any(isinstance(it, BestCheckpoint) and it.save_top_k != 0 for it in trainer.checkpoint_callbacks)
    best = checkpoint_folder(trainer) / BEST
    return best if kept and best.exists() else None


class BestCheckpoint(ModelCheckpoint):
    """The weights with the best `monitor` at a validation; without validation images, the last ones.

    save_top_k: how many are kept. Of several (-1: all), each is `step=<optimiser step>.ckpt` and best.ckpt is another
    name of the best. 0: none, and the test is on the last weights.
    """

    def __init__(self, monitor: str = "val/elbo", mode: str = "max", save_top_k: int = 1) -> None:
        if save_top_k < -1:
            raise ValueError(f"callbacks.best.save_top_k is a number of checkpoints, or -1 for all; found {save_top_k}")
        if mode not in ("max", "min"):
            raise ValueError(f"callbacks.best.mode is max or min; found {mode}")
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
        """Constant, so that a run resumes under another `save_top_k`."""
        return "BestCheckpoint"

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Find the run directory, and whether there is anything to monitor."""
        self.dirpath = str(checkpoint_folder(trainer))
        if not has_validation(trainer):
            self.monitor, self.save_top_k = None, min(self.save_top_k, 1)  # all or the last: none is better
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was, wherever the run directory is now and whichever of its files are left."""
        here = Path(self.dirpath or "")
        moved = {name: _moved(state_dict.get(name), here) for name in ("best_model_path", "kth_best_model_path")}
        kept = {_moved(path, here): score for path, score in state_dict["best_k_models"].items()}
        kept = {path: score for path, score in kept.items() if Path(path).is_file()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": kept, "dirpath": self.dirpath})
        self.current_score = state_dict["current_score"]
        if self.kth_best_model_path not in kept:
            self.kth_best_model_path = (min if self.mode == "max" else max)(kept, key=kept.__getitem__, default="")

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """From now on one file may change faster than a disk follows; what saves the state writes it too."""
        super().on_train_start(trainer, pl_module)
        writer = trainer.strategy.checkpoint_io
        saved_otherwise = any(isinstance(callback, LastCheckpoint) for callback in trainer.checkpoint_callbacks)
        if isinstance(writer, AtomicCheckpointIO) and saved_otherwise and not self._several:
            writer.deferred.add(Path(self.dirpath or "") / BEST)
        self._name_the_best(trainer)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        best = Path(filepath)
        if is_within_epoch(trainer) and best.is_file():
            # A stop within an epoch is validated; a run that goes on was not, and has the best one of before.
            _second_name(best, best.with_name(PREVIOUS_BEST))
        super()._save_checkpoint(trainer, filepath)
        self._name_the_best(trainer)

    @property
    def _several(self) -> bool:
        return self.filename != "best"

    def _name_the_best(self, trainer: Trainer) -> None:
        """Of several: best.ckpt, a second name of the file where the disk allows it, else a copy."""
        best = Path(self.best_model_path)
        if not (self._several and trainer.is_global_zero and self.best_model_path and best.is_file()):
            return
        _second_name(best, best.with_name(BEST))


class LastCheckpoint(Checkpoint):
    """The state to resume from: after an epoch, every `every_n_steps`, and at the end.

    every_n_seconds: epochs shorter than this share a checkpoint, so that short ones are not spent on saving. Pictures
    of its time that are still being drawn are waited for, a while at the end of an epoch, so that whatever a killed run
    goes on from, it lacks none.
    """

    def __init__(self, every_n_seconds: float = 10.0, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"callbacks.last.every_n_steps is a number of steps, or null; found {every_n_steps}")
        if every_n_seconds < 0:
            raise ValueError(f"callbacks.last.every_n_seconds is at least 0; found {every_n_seconds}")
        self.every_n_seconds, self.every_n_steps = every_n_seconds, every_n_steps
        self._saved_at = time.monotonic()
        self._saved_step = -1

    def save_now(self, trainer: Trainer) -> None:
        """Save whatever the trainer is doing; it resumes from this very step."""
        trainer.save_checkpoint(checkpoint_folder(trainer) / LAST)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """It is on the disk."""
        self._saved_step = checkpoint["global_step"]

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Calls of the trainer are cut where a checkpoint is due; one at the end of an epoch waits for that.

        Where training stops within an epoch, the state is saved now: a run that goes on has neither the validation nor
        the row that come with a stop.
        """
        if is_within_epoch(trainer) and (self._is_due(trainer.global_step) or _stops_here(trainer)):
            self._save_with_pictures(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save, unless it was done a moment ago."""
        if is_within_epoch(trainer):
            return
        step = trainer.global_step
        passed = trainer.strategy.broadcast(time.monotonic() - self._saved_at)  # all or none of several processes
        if self._is_due(step) or passed >= PATIENCE * self.every_n_seconds:
            self._save_with_pictures(trainer)
        elif passed >= self.every_n_seconds and not any(callback.busy for callback in image_loggers(trainer)):
            self.save_now(trainer)

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        """The end of training is always saved."""
        if not is_within_epoch(trainer) or self._saved_step != trainer.global_step:
            self.save_now(trainer)
        elif isinstance(writer := trainer.strategy.checkpoint_io, AtomicCheckpointIO):
            writer.flush()  # the best of the stop, beside the state before it

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Where training cannot go on but the weights are as they should be."""
        if isinstance(exception, NonFiniteLoss | BackgroundError) and trainer.global_step and trainer.training:
            with suppress(NonFiniteLoss):
                self.save_now(trainer)

    def _is_due(self, step: int) -> bool:
        return self.every_n_steps is not None and step % self.every_n_steps == 0 and step != self._saved_step

    def _save_with_pictures(self, trainer: Trainer) -> None:
        for callback in image_loggers(trainer):
            callback.wait()
        self.save_now(trainer)


def _second_name(file: Path, name: Path) -> None:
    partial = name.with_name(f".{name.name}.{os.getpid()}.partial")
    try:
        os.link(file, partial)
    except OSError:
        shutil.copyfile(file, partial)
    partial.replace(name)
    partial.unlink(missing_ok=True)  # a rename between two names of one file does nothing


def _stops_here(trainer: Trainer) -> bool:
    return trainer.should_stop or trainer.global_step == final_step(trainer, datamodule_of(trainer).steps_per_epoch)


def _moved(path: str | None, folder: Path) -> str:
    """A file of the run directory, which may have another place now."""
    return str(folder / Path(path).name) if path else ""
