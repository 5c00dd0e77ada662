"""summary.json: status, metrics and environment of a run, written however it ends."""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from omegaconf import DictConfig

from vae_lab.callbacks.throughput import Throughput
from vae_lab.data.datamodule import datamodule_of, final_step
from vae_lab.runs.provenance import config_hash, git_state, versions
from vae_lab.training.lightning_module import VAEModule
from vae_lab.utils.errors import RunFailed, cause_chain
from vae_lab.utils.files import write_json
from vae_lab.utils.signals import ForcedInterrupt, Interrupted, defer_sigint

log = logging.getLogger("vae_lab")
DISK_ERRNOS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.ESTALE,
    errno.ENOENT,
)
PARTS = ("training", "validation", "pictures", "checkpoints", "last_pictures", "baseline")
INTERRUPTIONS = (Interrupted, ForcedInterrupt, KeyboardInterrupt)


class RunSummary:
    """Collects the warnings and results of a run; as a context manager, writes summary.json on every exit.

    Entered once the trainer exists. `extra_warnings` may be appended to at any time. An OSError of the run directory's
    disk is re-raised as RunFailed, with advice.
    """

    def __init__(self, folder: Path, config: DictConfig, trainer: Trainer, module: VAEModule) -> None:
        self.folder, self.config, self.trainer, self.module = folder, config, trainer, module
        self.extra_warnings: list[str] = []
        self._status = ""
        self._started = time.perf_counter()

    @property
    def warnings(self) -> list[str]:
        """Caveats of the results: from the data, the training and the callbacks."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        watched = [text for callback in callbacks for text in getattr(callback, "warnings", ())]
        return list(dict.fromkeys([*self.extra_warnings, *self.module.warnings, *watched, *self._caveats]))

    @property
    def _caveats(self) -> list[str]:
        """Partial validations and tests, and fewer devices than requested."""
        trainer, data, found = self.trainer, datamodule_of(self.trainer), []
        for split in ("val", "test"):
            limit, size = getattr(trainer, f"limit_{split}_batches"), data.size(split)
            if size and limit not in (None, 0, 1.0):
                found.append(f"trainer.limit_{split}_batches={limit}: {split} metrics do not cover the whole split")
            elif size and limit == 0:
                found.append(f"trainer.limit_{split}_batches=0: the {split} split was not evaluated")
        asked = self.config.trainer.devices
        if isinstance(asked, int) and trainer.world_size < asked * self.config.trainer.num_nodes:
            found.append(f"ran on {trainer.world_size} devices, fewer than trainer.devices={asked}")
        return found

    def __enter__(self) -> RunSummary:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        failed = self._disk_failure(error) or error
        with defer_sigint():
            if any(isinstance(link, INTERRUPTIONS) for link in cause_chain(error)):
                self._write_if_possible("interrupted")
            elif failed is not None:
                self._write_if_possible("failed", error=f"{type(failed).__name__}: {failed}")
            else:
                self._write_if_possible("interrupted" if self._is_out_of_time else "completed")
            if self.trainer.is_global_zero:
                self._report()
        if failed is not error and failed is not None:
            raise failed from error

    @property
    def _is_out_of_time(self) -> bool:
        """Whether trainer.max_time stopped training before its final step."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        end = final_step(self.trainer, datamodule_of(self.trainer).steps_per_epoch)
        timers = [callback for callback in callbacks if isinstance(callback, Timer)]
        return self.trainer.global_step != end and any((timer.time_remaining() or 1) <= 0 for timer in timers)

    def _disk_failure(self, error: BaseException | None) -> RunFailed | None:
        """RunFailed for an OSError of the run directory's disk in the cause chain; None if there is none."""
        refused = (link for link in cause_chain(error) if isinstance(link, OSError) and link.errno in DISK_ERRNOS)
        cause = next(
            (link for link in refused if link.filename is None or self._is_in_run_directory(link.filename)), None
        )
        if cause is None:
            return None
        where = f"{cause.filename}: " if cause.filename else ""
        return RunFailed(
            f"{where}{os.strerror(cause.errno or 0)}, in the run directory {self.folder}.\n"
            "Files saved earlier are intact. Free disk space (or make the directory writable), then resume the run"
        )

    def _is_in_run_directory(self, filename: object) -> bool:
        return str(filename).startswith(str(self.folder))

    def _write_if_possible(self, status: str, error: str | None = None) -> None:
        try:
            self.write(status, error)
        except OSError as refused:
            sys.stderr.write(f"summary.json could not be written: {refused.strerror or refused}\n")

    def _report(self) -> None:
        """Log the warnings, the run directory, and how to resume."""
        for warning in self.warnings:
            log.warning("warning: %s", warning)
        for line in [f"run directory: {self.folder}"] + ([] if self._status == "completed" else self._resume_hint()):
            log.info(line)
            sys.stderr.write(f"{line}\n")

    def _resume_hint(self) -> list[str]:
        last = self.folder / "checkpoints" / "last.ckpt"
        return (
            [f"to resume: python -m vae_lab.train resume={self.folder}"]
            if last.exists()
            else ["no checkpoint was saved yet, so the run cannot be resumed"]
        )

    def write(self, status: str, error: str | None = None) -> None:
        """Write summary.json, on the first process."""
        self._status = status
        if self.trainer.is_global_zero:
            outcome = {"status": status} | ({"error": error} if error else {})
            write_json(self.folder / "summary.json", {**outcome, **self._results(), **self._environment()})

    def _results(self) -> dict[str, Any]:
        throughput = self._callback(Throughput)
        steps, steps_per_epoch = self.trainer.global_step, datamodule_of(self.trainer).steps_per_epoch
        seconds = time.perf_counter() - self._started
        return {
            "metrics": self.module.metrics,
            "best_metrics": self.module.best_metrics,
            "baseline": self.module.baseline,
            "warnings": self.warnings,
            "images_per_second": throughput.images_per_second,
            "images_per_second_whole_run": throughput.num_images / seconds,
            "seconds": seconds,
            "seconds_in": {part: self.module.stopwatch.seconds[part] for part in PARTS},
            "epochs": steps // steps_per_epoch,
            "steps": steps,
        }

    def _environment(self) -> dict[str, Any]:
        return {
            "num_parameters": sum(p.numel() for p in self.module.model.parameters()),
            "device": device_name(self.trainer),
            "precision": str(self.trainer.precision),
            "seed": self.config.seed,
            "config_hash": config_hash(self.config),
            "versions": versions(),
            "git": git_state(),
        }

    def _callback(self, kind: type[Any]) -> Any:
        return next(callback for callback in self.trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]


def device_name(trainer: Trainer) -> str:
    """`cpu`, or the name of the accelerator; prefixed with the number of processes if several."""
    import torch

    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name if trainer.world_size == 1 else f"{trainer.world_size} x {name}"
