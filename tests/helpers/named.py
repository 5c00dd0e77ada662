"""Classes that the tests name on the command line, as a user names their own; and options that name them."""

import math
import os
from pathlib import Path

import torch
from hydra.experimental.callback import Callback as HydraCallback
from lightning.pytorch import Callback

from vae_lab.networks import MLPEncoder


class StopAt(Callback):
    """Sends this process a signal, once, where the command line says: after a step, in or after a validation, ..."""

    def __init__(self, step: int, where: str, sign: int) -> None:
        self.step, self.where, self.sign = step, where, sign
        self.marker = Path("marker")  # in the folder of the command, and of the one that resumes

    def _at(self, where, trainer) -> None:
        here = where == self.where and trainer.global_step == self.step and not trainer.sanity_checking
        if here and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), self.sign)

    def on_train_batch_end(self, trainer, *_) -> None:
        self._at("step", trainer)

    def on_validation_batch_end(self, trainer, *_) -> None:
        self._at("validation", trainer)

    def on_validation_end(self, trainer, *_) -> None:
        self._at("validated", trainer)

    def on_train_end(self, trainer, *_) -> None:
        self._at("end", trainer)

    def on_test_batch_end(self, trainer, *_) -> None:
        self._at("test", trainer)


def stop_at(step: int, where: str, sign: int) -> tuple[str, ...]:
    """The options that add such a callback."""
    node = "+callbacks.stop"
    return (f"{node}._target_=helpers.named.StopAt", f"{node}.step={step}", f"{node}.where={where}",
            f"{node}.sign={int(sign)}")  # fmt: skip


class NanAt:
    """A schedule that is not a number at one step, or from it on: the command line names it by its path."""

    def __init__(self, step: int, ever_after: bool = False) -> None:
        self.step, self.ever_after = step, ever_after

    def __call__(self, step: int, total_steps: int | None) -> float:
        return math.nan if step == self.step or (self.ever_after and step > self.step) else 1.0


def nan_at(step: int, ever_after: bool = False) -> tuple[str, ...]:
    node = "objective.beta_schedule"
    return f"{node}._target_=helpers.named.NanAt", f"+{node}.step={step}", f"+{node}.ever_after={ever_after}"


class KeepState(Callback):
    """Writes what each process ends training with, as rank<r>.pt in the run directory."""

    def on_train_end(self, trainer, pl_module) -> None:
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        path = Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.pt"
        torch.save({"state": state, "metrics": pl_module.metrics, "step": trainer.global_step}, path)


class OwnEncoder(MLPEncoder):
    """What a user wrote: in a module of their own, on the path."""


class KeepReturn(HydraCallback):
    """Writes what a job returns, as a sweeper is given it, into its folder."""

    def on_job_end(self, config, job_return, **_) -> None:
        Path(job_return.hydra_cfg.hydra.runtime.output_dir, "returned.txt").write_text(str(job_return.return_value))
