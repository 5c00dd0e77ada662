"""summary.json: a run at a glance, written whatever way the run ended."""

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

from vae_lab.callbacks.metrics_csv import MetricsCSV
from vae_lab.callbacks.throughput import Throughput
from vae_lab.data.datamodule import datamodule_of, final_step
from vae_lab.runs.provenance import config_hash, git_state, versions
from vae_lab.training.lightning_module import VAEModule
from vae_lab.utils.errors import RunFailed, cause_chain
from vae_lab.utils.files import write_json
from vae_lab.utils.signals import ForcedInterrupt, Interrupted, defer_sigint

log = logging.getLogger("vae_lab")
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENOENT)
INTERRUPTIONS = (Interrupted, ForcedInterrupt, KeyboardInterrupt)


class RunSummary:
    """Collects what a run says of itself; as a context, writes it on every way out.

    Entered once the trainer exists. `noticed` may be added to at any time. A disk that cannot be written becomes a
    RunFailed that says what is left.
    """

    def __init__(self, folder: Path, config: DictConfig, trainer: Trainer, experiment: VAEModule) -> None:
        self.folder, self.config, self.trainer, self.experiment = folder, config, trainer, experiment
        self.extra_warnings: list[str] = []
        self._status = ""
        self._started = time.perf_counter()

    @property
    def warnings(self) -> list[str]:
        """What a reader of the numbers has to know: of the data, of the training, of what watched it."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        watched = [text for callback in callbacks for text in getattr(callback, "warnings", ())]
        return list(dict.fromkeys([*self.extra_warnings, *self.experiment.warnings, *watched, *self._left_out]))

    @property
    def _left_out(self) -> list[str]:
        """What was asked for, or is usual, and was not done."""
        trainer, data, found = self.trainer, datamodule_of(self.trainer), []
        if data.size("val") and not self.experiment.epoch_end.validated_at and self._status == "completed":
            found.append("validation was skipped: no checkpoint was chosen by it")
        for split in ("val", "test"):
            limit, size = getattr(trainer, f"limit_{split}_batches"), data.size(split)
            if size and limit not in (None, 0, 1.0):
                found.append(f"trainer.limit_{split}_batches={limit}: {split} metrics are not of the whole split")
            elif size and limit == 0:
                found.append(f"trainer.limit_{split}_batches=0: nothing of the {split} split was looked at")
        asked = self.config.trainer.devices
        if isinstance(asked, int) and trainer.world_size < asked * self.config.trainer.num_nodes:
            found.append(f"it ran on {trainer.world_size} devices, fewer than trainer.devices={asked} asks for")
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
        """Whether trainer.max_time ended training before anything else would have."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        end = final_step(self.trainer, datamodule_of(self.trainer).steps_per_epoch)
        timers = [callback for callback in callbacks if isinstance(callback, Timer)]
        return self.trainer.global_step != end and any((timer.time_remaining() or 1) <= 0 for timer in timers)

    def _disk_failure(self, error: BaseException | None) -> RunFailed | None:
        """What a write that the disk refused comes to."""
        refused = (link for link in cause_chain(error) if isinstance(link, OSError) and link.errno in DISK)
        cause = next((link for link in refused if link.filename is None or self._is_ours(link.filename)), None)
        if cause is None:
            return None
        where = f"{cause.filename}: " if cause.filename else ""
        return RunFailed(
            f"{where}{os.strerror(cause.errno or 0)}, in the run folder {self.folder}.\n"
            "What was saved before is whole. Make room (or the folder writable), then go on from there"
        )

    def _is_ours(self, filename: object) -> bool:
        return str(filename).startswith(str(self.folder))

    def _write_if_possible(self, status: str, error: str | None = None) -> None:
        try:
            self.write(status, error)
        except OSError as refused:
            sys.stderr.write(f"summary.json could not be written: {refused.strerror or refused}\n")

    def _report(self) -> None:
        """Where everything is, what a reader of the numbers has to know, and how to go on."""
        for warning in self.warnings:
            log.warning("warning: %s", warning)
        for line in [f"run folder: {self.folder}"] + ([] if self._status == "completed" else self._resume_hint()):
            log.info(line)
            sys.stderr.write(f"{line}\n")

    def _resume_hint(self) -> list[str]:
        last = self.folder / "checkpoints" / "last.ckpt"
        return (
            [f"to go on: python -m vae_lab.train resume={self.folder}"]
            if last.exists()
            else ["nothing was saved yet that a run could go on from"]
        )

    def write(self, status: str, error: str | None = None) -> None:
        """Write summary.json (on the first process)."""
        self._status = status
        if self.trainer.is_global_zero:
            outcome = {"status": status} | ({"error": error} if error else {})
            write_json(self.folder / "summary.json", {**outcome, **self._results(), **self._circumstances()})

    def _results(self) -> dict[str, Any]:
        table, throughput = self._callback(MetricsCSV), self._callback(Throughput)
        steps, steps_per_epoch = self.trainer.global_step, datamodule_of(self.trainer).steps_per_epoch
        seconds = time.perf_counter() - self._started
        return {
            "metrics": self.experiment.metrics,
            "best_metrics": table.best_metrics,
            "warnings": self.warnings,
            "images_per_second": throughput.images_per_second,
            "images_per_second_whole_run": throughput.num_images / seconds,
            "seconds": seconds,
            "seconds_in": throughput.seconds_in(self.trainer),
            "epochs": steps // steps_per_epoch,
            "steps": steps,
        }

    def _circumstances(self) -> dict[str, Any]:
        return {
            "num_parameters": sum(p.numel() for p in self.experiment.model.parameters()),
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
    """`cpu`, or the accelerator's own name; with their number where there are several."""
    import torch

    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return name if trainer.world_size == 1 else f"{trainer.world_size} x {name}"
