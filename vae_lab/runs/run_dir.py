"""The run directory: a new one for each run, which a resumed run keeps.

A primary config names it in `hydra.run.dir` and `hydra.sweep.dir`, and `RunDirectory` in `hydra.callbacks`.
"""

from __future__ import annotations

import os
import re
from itertools import chain, count
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from vae_lab.runs.resume import AUTO, is_unfinished, newest_unfinished, require_resumable
from vae_lab.utils.errors import UsageError


class Refusal(BaseException):
    """Carries a UsageError, its cause, out of a callback: Hydra turns any Exception there into a warning."""


def register_resolvers() -> None:
    """Register `${run_name:}`: the name of the config, else of its experiment, else <model>-<data>."""
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)


def _run_name(*, _root_: DictConfig) -> str:
    choices = _root_.hydra.runtime.choices
    pair = "-".join(str(choices[group]) for group in ("model", "data") if choices.get(group))
    name = _root_.get("name") or choices.get("experiment") or pair or "run"
    return re.sub(r"[^\w.=+-]+", "_", str(name)).lstrip(".") or "run"  # no path outside outputs/


class RunDirectory(Callback):
    """Create the directory of a run or a sweep before Hydra writes to it; refuse one that cannot be used."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if "LOCAL_RANK" in os.environ:  # a child process of Lightning uses the directory of its parent
            return
        folder, is_override = _configured_folder(config, "hydra.run.dir")
        try:
            resumed = _resumed_run(config, folder, is_override)
            config.hydra.run.dir = str(resumed or _create(folder, is_override))
        except UsageError as error:
            raise Refusal from error
        if resumed:
            config.hydra.output_subdir = None  # it keeps its stored config

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder, is_override = _configured_folder(config, "hydra.sweep.dir")
        resume = OmegaConf.select(config, "resume")
        try:
            if resume is not None:
                raise UsageError(f"resume={resume}: a sweep cannot be resumed, only a single run\nremove --multirun")
            config.hydra.sweep.dir = str(_create(folder, is_override))
        except UsageError as error:
            raise Refusal from error
        if not is_override:  # the config of each job is composed anew, from the overrides
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{config.hydra.sweep.dir}'")


def _configured_folder(config: DictConfig, key: str) -> tuple[Path, bool]:
    """The directory that a key names, and whether the command line has set it."""
    HydraConfig.instance().set_config(config)  # for ${hydra:...} in the path
    OmegaConf.set_readonly(config.hydra, False)
    is_override = any(override.startswith(f"{key}=") for override in config.hydra.overrides.hydra)
    return Path(OmegaConf.select(config, key)), is_override


def _resumed_run(config: DictConfig, folder: Path, is_override: bool) -> Path | None:
    """The directory of the run that `resume` names, if any."""
    resume = OmegaConf.select(config, "resume")
    if resume is None:
        return None
    if resume == AUTO and is_override:
        run = folder if is_unfinished(folder, config) else None
    else:
        run = newest_unfinished(folder.parent, config) if resume == AUTO else require_resumable(resume)
    if run and is_override and run.resolve() != folder.resolve():
        raise UsageError(f"hydra.run.dir={folder}: a resumed run keeps its own directory\nremove hydra.run.dir")
    if run and not os.access(run, os.W_OK | os.X_OK):
        raise _not_writable(run, "permission denied, or a read-only file system")
    return run


def _create(folder: Path, is_override: bool) -> Path:
    """Create the directory, or <folder>_2, <folder>_3 ... if it exists; one that the user named may exist already.

    mkdir is atomic: of several runs started at once, one creates the directory (or .hydra in it), the others do not.
    """
    try:
        if is_override:
            folder.mkdir(parents=True, exist_ok=True)
            _require_no_run(folder)
            (folder / ".hydra").mkdir()
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        numbered = (folder.with_name(f"{folder.name}_{number}") for number in count(2))
        return next(candidate for candidate in chain([folder], numbered) if _is_new(candidate))
    except OSError as error:
        raise _not_writable(folder, str(error.strerror)) from error


def _is_new(folder: Path) -> bool:
    """Create a directory, unless it exists."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _require_no_run(folder: Path) -> None:
    held = next((name for name in (".hydra", "summary.json", "multirun.yaml") if (folder / name).exists()), None)
    if held is not None:
        raise UsageError(f"{folder}: already holds a run ({held})\nchoose another directory, or resume={folder}")


def _not_writable(folder: Path, reason: str) -> UsageError:
    return UsageError(f"cannot write the run directory {folder}: {reason}\nset another: hydra.run.dir=DIRECTORY")
