"""The run directory: a new one for each run, which a resumed run keeps.

In a primary config: `hydra.run.dir: ${run_dir:outputs}`, `hydra.sweep.dir: ${sweep_dir:outputs}` and
`hydra.callbacks.run_folder._target_: vae_lab.runs.run_dir.RunDirectory`.
"""

from __future__ import annotations

import os
import re
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from vae_lab.runs.resume import AUTO, is_unfinished, newest_unfinished, require_resumable, run_dir_of
from vae_lab.utils.errors import UsageError


def register_resolvers() -> None:
    """Register `${run_dir:ROOT}` and `${sweep_dir:ROOT}`; all references in one config give the same directory."""
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)
    OmegaConf.register_new_resolver("sweep_dir", _sweep_dir, replace=True)


class RunDirectory(Callback):
    """Refuse, before Hydra writes anything, a directory that already holds a run or cannot be written.

    Hydra turns an exception of a callback into a warning; `vae_lab.runs.cli` turns that warning back into the error.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the directory of a single run; a resumed run keeps its stored config."""
        if "LOCAL_RANK" in os.environ:  # a child process of Lightning uses the directory of its parent
            return
        folder = _chosen_folder(config, "hydra.run.dir")
        resume = OmegaConf.select(config, "resume")
        if resume is None or (resume == AUTO and not is_unfinished(folder, config)):
            _require_fresh(folder, "hydra.run.dir")
        elif resume == AUTO or folder.resolve() == run_dir_of(resume).resolve():
            _require_writable(folder)
            config.hydra.output_subdir = None
        else:
            raise UsageError(f"hydra.run.dir={folder}: a resumed run keeps its own directory\nremove hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if OmegaConf.select(config, "resume") is not None:
            raise UsageError(f"resume={config.resume}: a sweep cannot be resumed, only a single run\nremove --multirun")
        _require_fresh(_chosen_folder(config, "hydra.sweep.dir"), "hydra.sweep.dir")


def _chosen_folder(config: DictConfig, key: str) -> Path:
    HydraConfig.instance().set_config(config)  # for ${hydra:...} in the path
    OmegaConf.set_readonly(config.hydra, False)
    return Path(OmegaConf.select(config, key))


def _run_dir(outputs: str, *, _root_: DictConfig) -> str:
    resume, parent = OmegaConf.select(_root_, "resume"), Path(outputs) / _run_name(_root_)
    if resume == AUTO:
        made = OmegaConf.get_cache(_root_)["vae_lab.runs.run_dir"]  # a second reference gives the same run
        unfinished = made.get(parent) or newest_unfinished(parent, _root_)
        if unfinished is not None:
            made[parent] = unfinished
            return str(unfinished)
    elif resume is not None:
        return str(require_resumable(resume))
    return _new_folder(parent, _root_)


def _sweep_dir(outputs: str, *, _root_: DictConfig) -> str:
    return _new_folder(Path(outputs) / "sweeps", _root_)


def _run_name(config: DictConfig) -> str:
    choices = config.hydra.runtime.choices
    pair = "-".join(str(choices[group]) for group in ("model", "data") if choices.get(group))
    name = config.get("name") or choices.get("experiment") or pair or "run"
    return re.sub(r"[^\w.=+-]+", "_", str(name)).lstrip(".") or "run"  # no path outside outputs/


def _new_folder(parent: Path, config: DictConfig) -> str:
    """The path of a new directory named by the time, created unless nothing runs (`--cfg`).

    Cached in the config, as Hydra does for `${now:}`, from which the jobs of a sweep copy it.
    """
    made = OmegaConf.get_cache(config)["vae_lab.runs.run_dir"]
    if parent not in made:
        folder = parent / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
        made[parent] = folder if config.hydra.mode is None else _claim(folder)
    return str(made[parent])


def _claim(folder: Path) -> Path:
    """Create the directory, or <folder>_2, _3 ... if it is taken by another run: mkdir is atomic."""
    for number in count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            if candidate.exists():  # otherwise a parent is a file
                continue
            raise _not_writable(folder, "a parent of it is a file") from None
        except OSError as error:
            raise _not_writable(folder, str(error.strerror)) from error
        return candidate
    raise AssertionError("count() has no end")


def _require_fresh(folder: Path, key: str) -> None:
    held = next((name for name in (".hydra", "summary.json", "multirun.yaml") if (folder / name).exists()), None)
    if held is not None:
        raise UsageError(
            f"{key}={folder}: already holds a run ({held})\nchoose another directory, or resume it: resume={folder}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, str(error.strerror)) from error
    _require_writable(folder)


def _require_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _not_writable(folder, "permission denied, or a read-only file system")


def _not_writable(folder: Path, reason: str) -> UsageError:
    return UsageError(f"cannot write the run directory {folder}: {reason}\nset another: hydra.run.dir=DIRECTORY")
