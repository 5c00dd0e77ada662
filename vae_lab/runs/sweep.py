"""Sweeps that go on after failed and interrupted jobs.

The number of a job, which names its directory, is its place in the product of the overrides in the order they are
typed, the last one varying fastest: the same overrides give the same jobs the same numbers, whatever the launcher.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vae_lab.runs.resume import CONFIG_FILE, read_summary, resume_checkpoint
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import write_json

RESUME = "sweep.resume"
SWEEP_FILE = "multirun.yaml"  # written by Hydra's sweeper
NOT_RESUMABLE = ("checkpoints", "images", "tensorboard", "csv", "metrics.csv", "summary.json")  # without last.ckpt


def require_single_run(reason: str) -> None:
    """UsageError with this reason: the command line asks for a sweep."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        raise UsageError(f"{reason}\nremove --multirun")


def prepare_resumed_sweep(config: DictConfig) -> Path:
    """The directory that `sweep.resume` names; sets up Hydra's config so that its jobs keep what they have.

    UsageError: not a sweep, or one of other overrides, which would give its numbers to other jobs.
    """
    folder = Path(config.sweep.resume)
    if not (folder / SWEEP_FILE).is_file():
        found = f"no {SWEEP_FILE} in it" if folder.is_dir() else "no such folder"
        raise UsageError(f"{RESUME}={folder}: {found}\nexpected a sweep, such as outputs/sweeps/DATE_TIME")
    before = OmegaConf.select(OmegaConf.load(folder / SWEEP_FILE), "hydra.overrides.task") or []
    words = [word for word in config.hydra.overrides.task if not word.startswith(f"{RESUME}=")]
    if untrusted(words) != untrusted(before):
        raise UsageError(f"{RESUME}={folder}: the sweep has other overrides: {' '.join(before)}\ngive it the same ones")
    config.sweep.resume = None
    config.hydra.overrides.task = words
    config.hydra.overrides.hydra.append("hydra.output_subdir=null")  # else Hydra would replace the stored configs
    return folder


def untrusted(words: Iterable[str]) -> list[str]:
    """Overrides without `trusted`, which changes no job."""
    return [word for word in words if not word.startswith("trusted=")]


def is_job_of_resumed_sweep() -> bool:
    config = HydraConfig.get()
    return config.mode is RunMode.MULTIRUN and config.output_subdir is None


def store_config(config: DictConfig) -> None:
    """Store the config of a job of a sweep in place of what Hydra has stored: the folders of its data are absolute.

    A resumed job keeps its own; for one that has not started before, write all that Hydra would.
    """
    folder = Path(config.hydra.runtime.output_dir, CONFIG_FILE.parent)
    if is_job_of_resumed_sweep():
        if (folder / CONFIG_FILE.name).is_file():
            return
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config.hydra.overrides.task, folder / "overrides.yaml")
        OmegaConf.save(OmegaConf.masked_copy(config, ["hydra"]), folder / "hydra.yaml")
    task = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    OmegaConf.save(task, folder / CONFIG_FILE.name)


def completed_metrics(folder: Path) -> dict[str, float] | None:
    """The metrics of a completed run, those of validation at its best one; None for any other."""
    summary = read_summary(folder)
    if summary.get("status") != "completed":
        return None
    return {**summary.get("metrics", {}), **summary.get("best_metrics", {})}


def remove_partial_results(folder: Path) -> None:
    """Remove what a run without a checkpoint has written: it starts again. Its log is kept."""
    if resume_checkpoint(folder).is_file():
        return
    for name in NOT_RESUMABLE:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def record_failure(folder: Path, message: str, exit_code: int) -> None:
    """Note in summary.json of a job that it failed; it may have failed before there was a run to summarise."""
    failure = {"status": "failed", "error": message, "exit_code": exit_code}
    write_json(folder / "summary.json", read_summary(folder) | failure)


def failed_jobs(sweep: Path) -> dict[Path, dict[str, Any]]:
    """The directories of failed jobs with their summaries, by number."""
    summaries = {path.parent: read_summary(path.parent) for path in sweep.rglob("summary.json")}
    failed = {folder: summary for folder, summary in summaries.items() if "exit_code" in summary}
    return dict(sorted(failed.items(), key=lambda item: (len(item[0].name), item[0].name)))


def report_failures(sweep: Path) -> tuple[str, int]:
    """A text that lists the failed jobs of a sweep, and the largest of their exit codes; empty and 0 without any."""
    failed = failed_jobs(sweep)
    lines = [f"{len(failed)} job{'s' * (len(failed) > 1)} failed:"]
    for folder, summary in failed.items():
        file = folder / CONFIG_FILE.parent / "overrides.yaml"
        overrides = " ".join(map(str, OmegaConf.load(file))) if file.is_file() else ""
        lines.append(f"  job {folder.name} ({overrides}): {str(summary['error']).partition(chr(10))[0]}")
    return ("\n".join(lines) + "\n", max(it["exit_code"] for it in failed.values())) if failed else ("", 0)
