"""The run that `resume` names: a run directory, a checkpoint in it, or auto, the newest unfinished run of a config.

A lock on the run directory lets one process at a time train a run.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf

from vae_lab.runs.processes import is_first_process
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import read_json

AUTO = "auto"
CONFIG_FILE = Path(".hydra", "config.yaml")
LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")
LOCK_SECONDS = 3.0  # for the child processes of a killed process to exit
KEYS_NOT_COMPARED = {"resume", "trusted", "name", "sweep", "hydra"}  # by resume=auto


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
    return read_json(run / "summary.json")


@contextmanager
def exclusive_lock(run: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Lock a run directory. UsageError: another process still holds the lock after `seconds`."""
    if os.name != "posix" or not is_first_process():  # which holds it
        yield
        return
    import fcntl

    folder, end = os.open(run, os.O_RDONLY), time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    found = "another process is training this run"
                    raise UsageError(f"{run}: {found}\nwait until it ends, or stop it, then resume the run") from error
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(folder)


def is_locked(run: Path) -> bool:
    try:
        with exclusive_lock(run, seconds=0.0):
            return False
    except UsageError:
        return True
