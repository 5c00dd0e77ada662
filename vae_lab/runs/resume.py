"""Which run `resume` means: a folder, one of its checkpoints, or `auto`: the newest unfinished one of this config."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf

from vae_lab.runs.lock import is_locked
from vae_lab.utils.errors import UsageError

AUTO = "auto"
CONFIG_FILE = Path(".hydra", "config.yaml")
LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")
NOT_COMPARED = ("resume", "trusted", "name")  # by auto


def run_dir_of(resume: str | Path) -> Path:
    """The run directory that is meant."""
    path = Path(resume)
    return path.parents[1] if path.suffix == ".ckpt" and path.parent.name == "checkpoints" else path


def resume_checkpoint(resume: str | Path) -> Path:
    """The file to go on from."""
    path = Path(resume)
    return path if run_dir_of(path) != path else path / LAST_CHECKPOINT


def require_resumable(resume: str | Path) -> Path:
    """The run directory. UsageError: it is none, or has no checkpoint yet."""
    run = run_dir_of(resume)
    for needed in (run / CONFIG_FILE, resume_checkpoint(resume)):
        if not needed.is_file():
            found = f"no {needed.relative_to(run)} in it" if run.is_dir() else "no such folder"
            raise UsageError(
                f"resume={resume}: {found}\nexpected a run directory, with {CONFIG_FILE} and {LAST_CHECKPOINT}"
            )
    return run


def newest_unfinished(parent: Path, config: DictConfig) -> Path | None:
    """The last started of the runs in `parent` that can be gone on with and have this config."""
    runs = sorted(parent.iterdir(), key=_start_time, reverse=True) if parent.is_dir() else []
    return next((run for run in runs if is_unfinished(run, config) and not is_locked(run)), None)


def is_unfinished(run: Path, config: DictConfig) -> bool:
    """Whether a folder holds a run of this config that did not end, and a checkpoint of it."""
    if not ((run / CONFIG_FILE).is_file() and (run / LAST_CHECKPOINT).is_file()):
        return False
    return read_summary(run).get("status") != "completed" and _stored_config(run) == _comparable(config)


def _start_time(run: Path) -> tuple[str, int]:
    """By its name: <date>_<time>, and a number where two were as fast."""
    number = re.fullmatch(r"(.{19})_(\d+)", run.name)
    return (number[1], int(number[2])) if number else (run.name, 1)


def read_summary(run: Path) -> dict[str, Any]:
    """What a run said of itself; empty where it was killed before it could, or while it did."""
    try:
        content = json.loads((run / "summary.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _stored_config(run: Path) -> Any:
    try:
        return _comparable(OmegaConf.load(run / CONFIG_FILE))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _comparable(config: Any) -> Any:
    """As it is written: interpolations are not resolved, for that may do things."""
    content = OmegaConf.to_container(config, resolve=False)
    if not isinstance(content, dict):
        return None
    return {key: value for key, value in content.items() if key not in (*NOT_COMPARED, "hydra")}
