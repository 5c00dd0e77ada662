"""summary.json: status, metrics and environment of a run, written however it ends."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from omegaconf import DictConfig

from vae_lab.data.datamodule import datamodule_of, final_step
from vae_lab.runs.provenance import config_hash, git_state, versions
from vae_lab.training.lightning_module import VAEModule
from vae_lab.utils.errors import RunFailed, cause_chain
from vae_lab.utils.files import write_json
from vae_lab.utils.signals import ForcedInterrupt, Interrupted, defer_sigint

log = logging.getLogger("vae_lab")
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)  # of errors that may name no file
PARTS = ("training", "validation", "pictures", "checkpoints", "last_pictures", "baseline")
INTERRUPTIONS = (Interrupted, ForcedInterrupt, KeyboardInterrupt)


class RunSummary:
    """A context, entered once the trainer exists, that writes summary.json on every exit.

    An OSError of the run directory's disk is re-raised as RunFailed, with advice.
    """

    def __init__(self, folder: Path, config: DictConfig, trainer: Trainer, module: VAEModule) -> None:
        self.folder, self.config, self.trainer, self.module = folder, config, trainer, module
        self._started = time.perf_counter()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        failure = disk_failure(error, self.folder) or memory_failure(error, self.config.data) or error
        if any(isinstance(link, INTERRUPTIONS) for link in cause_chain(error)):
            outcome = {"status": "interrupted"}
        elif failure is not None:
            outcome = {"status": "failed", "error": f"{type(failure).__name__}: {failure}"}
        else:
            outcome = {"status": "interrupted" if self._is_out_of_time() else "completed"}
        if self.trainer.is_global_zero:
            with defer_sigint():
                try:
                    write_json(self.folder / "summary.json", outcome | self._results() | self._environment())
                except OSError as refused:
                    sys.stderr.write(f"summary.json could not be written: {refused.strerror or refused}\n")
                self._report(outcome, failure)
        if failure is not None and failure is not error:
            raise failure from error

    def _is_out_of_time(self) -> bool:
        """Whether trainer.max_time stopped training before its final step."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        end = final_step(self.trainer, datamodule_of(self.trainer).steps_per_epoch)
        timers = [callback for callback in callbacks if isinstance(callback, Timer)]
        return self.trainer.global_step != end and any((timer.time_remaining() or 1) <= 0 for timer in timers)

    def _report(self, outcome: dict[str, str], failure: BaseException | None) -> None:
        """Log the warnings, the failure (its message follows on stderr), the run directory, and how to resume."""
        status = outcome["status"]
        for warning in self.module.warnings():
            log.warning("%s", warning)
        if status == "failed":
            log.info("%s: %s", status, outcome["error"], exc_info=None if isinstance(failure, RunFailed) else failure)
        lines = [f"run directory: {self.folder}"]
        if status != "completed" and (self.folder / "checkpoints" / "last.ckpt").exists():
            lines.append(f"to resume: python -m vae_lab.train {shlex.quote(f'resume={self.folder}')}")
        elif status != "completed":
            lines.append("no checkpoint was saved yet, so the run cannot be resumed")
        for line in lines:
            log.info(line)
            sys.stderr.write(f"{line}\n")

    def _results(self) -> dict[str, Any]:
        module, watch, steps = self.module, self.module.stopwatch, self.trainer.global_step
        seconds = time.perf_counter() - self._started
        return {
            "metrics": module.metrics,
            "best_metrics": module.best_metrics,
            "baseline": module.baseline,
            "warnings": module.warnings(),
            "images_per_second": watch.images_per_second,
            "images_per_second_whole_run": watch.num_images / seconds,
            "seconds": seconds,
            "seconds_in": {part: watch.seconds[part] for part in PARTS},
            "epochs": steps // datamodule_of(self.trainer).steps_per_epoch,
            "steps": steps,
        }

    def _environment(self) -> dict[str, Any]:
        device, count = self.trainer.strategy.root_device, self.trainer.world_size
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {
            "num_parameters": sum(p.numel() for p in self.module.model.parameters()),
            "device": name if count == 1 else f"{count} x {name}",
            "precision": str(self.trainer.precision),
            "seed": self.config.seed,
            "config_hash": config_hash(self.config),
            "versions": versions(),
            "git": git_state(),
        }


def memory_failure(error: BaseException | None, data: DictConfig) -> RunFailed | None:
    """RunFailed, with the sizes to lower, if memory ran out; else None."""
    for link in cause_chain(error):
        if isinstance(link, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(link):
            steps = {frame.f_code.co_name for frame, _ in traceback.walk_tb(link.__traceback__)}
            key = "eval_batch_size" if steps & {"validation_step", "test_step"} else "batch_size"
            found = str(link).partition("\n")[0][:160]
            return RunFailed(f"out of memory: {found}\nset data.{key} below {data[key]}, or choose a smaller model")
    return None


def disk_failure(error: BaseException | None, folder: Path) -> RunFailed | None:
    """RunFailed for an OSError of the run directory's disk among an error and its causes; None if there is none."""
    for link in cause_chain(error):
        if not isinstance(link, OSError):
            continue
        in_folder = str(link.filename).startswith(str(folder))
        if in_folder or (link.filename is None and link.errno in DISK_ERRNOS):
            where = f"{link.filename}: " if in_folder else ""
            return RunFailed(
                f"{where}{os.strerror(link.errno or 0)}, in the run directory {folder}.\n"
                "Files saved earlier are intact. Free disk space (or make the directory writable), then resume the run"
            )
    return None
