"""The run that `resume` names: a run directory, a checkpoint in it, or auto, the newest unfinished run of a config."""

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
KEYS_NOT_COMPARED = {"resume", "trusted", "name", "hydra"}  # by resume=auto


def run_dir_of(resume: str | Path) -> Path:
    """The run directory of `resume`, which is one itself or a checkpoint in it."""
    path = Path(resume)
    return path.parents[1] if path.suffix == ".ckpt" and path.parent.name == "checkpoints" else path


def resume_checkpoint(resume: str | Path) -> Path:
    """The checkpoint to resume from: `resume` itself, or last.ckpt of a run directory."""
    path = Path(resume)
    return path if run_dir_of(path) != path else path / LAST_CHECKPOINT


def require_resumable(resume: str | Path) -> Path:
    """The run directory of `resume`. UsageError: not a run directory, or without a checkpoint."""
    run = run_dir_of(resume)
    for needed in (run / CONFIG_FILE, resume_checkpoint(resume)):
        if not needed.is_file():
            found = f"no {needed.relative_to(run)} in it" if run.is_dir() else "no such folder"
            raise UsageError(
                f"resume={resume}: {found}\nexpected a run directory, with {CONFIG_FILE} and {LAST_CHECKPOINT}"
            )
    return run


def newest_unfinished(parent: Path, config: DictConfig) -> Path | None:
    """The most recently started run in `parent` that is unfinished, has this config and is not locked.

    Their names are <date>_<time>, with a number at the end if several started in the same second.
    """
    runs = sorted(parent.glob("*"), key=lambda run: [int(n) for n in re.findall(r"\d+", run.name)], reverse=True)
    return next((run for run in runs if is_unfinished(run, config) and not is_locked(run)), None)


def is_unfinished(run: Path, config: DictConfig) -> bool:
    """Whether a directory holds an unfinished run of this config, with a checkpoint."""
    if not (run / LAST_CHECKPOINT).is_file() or read_summary(run).get("status") == "completed":
        return False
    try:
        return bool(_comparable(OmegaConf.load(run / CONFIG_FILE)) == _comparable(config))
    except (OSError, ValueError, yaml.YAMLError):
        return False


def _comparable(config: Any) -> Any:
    """The config as stored: interpolations are not resolved, because resolvers may have side effects."""
    content = OmegaConf.to_container(config, resolve=False)
    if not isinstance(content, dict):
        return None
    return {key: value for key, value in content.items() if key not in KEYS_NOT_COMPARED}


def read_summary(run: Path) -> dict[str, Any]:
    """The content of summary.json; empty if missing or truncated, as after a kill."""
    try:
        content = json.loads((run / "summary.json").read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
