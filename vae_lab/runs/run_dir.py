"""The run directory: a new one for each run, which a resumed run keeps.

conf/hydra/default.yaml names it in `run.dir` and `sweep.dir`, and `RunDirectory` in `callbacks`.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vae_lab.runs import resources
from vae_lab.runs.processes import by_torchrun, is_first_process, share_with_others
from vae_lab.runs.resume import AUTO, is_unfinished, newest_unfinished, require_resumable
from vae_lab.runs.search_path import CurrentFolder, warn_of_hidden_files
from vae_lab.runs.stored_config import MOVABLE
from vae_lab.runs.sweep import RESUME, prepare_resumed_sweep, store_config
from vae_lab.utils.errors import UsageError


class Refusal(BaseException):
    """Carries a UsageError, its cause, out of a callback: Hydra turns any Exception there into a warning."""


def register_with_hydra() -> None:
    """Register ./conf, `${run_name:}` (name, else the experiment's, else <model>-<data>), and the resources."""
    Plugins.instance().register(CurrentFolder)
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
    for resource in (resources.jobs_at_once, resources.threads_per_job, resources.gpus_per_job, resources.gpu_of_job):
        OmegaConf.register_new_resolver(resource.__name__, resource, replace=True)


def _run_name(*, _root_: DictConfig) -> str:
    choices = _root_.hydra.runtime.choices
    pair = "-".join(str(choices[group]) for group in ("model", "data") if choices.get(group))
    name = _root_.get("name") or choices.get("experiment") or pair or "run"
    return re.sub(r"[^\w.=+-]+", "_", str(name)).lstrip(".") or "run"  # no path outside outputs/


class RunDirectory(Callback):
    """Create the directory of a run or a sweep before Hydra writes to it; refuse one that cannot be used."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        find_data(config)
        if is_first_process():
            warn_of_hidden_files(config.hydra.runtime)
            try:
                _set_directory(config, "run")
            except Refusal:
                if by_torchrun():
                    share_with_others(None)
                raise
            if by_torchrun():
                share_with_others(config.hydra.run.dir)
            return
        OmegaConf.set_readonly(config.hydra, False)
        if by_torchrun():
            config.hydra.run.dir = share_with_others(None)
            if not config.hydra.run.dir:
                raise Refusal from UsageError("the first process has refused the run directory")
        config.hydra.output_subdir = None  # one process writes: the config, the log
        OmegaConf.update(config, "hydra.job_logging.handlers.file", {"class": "logging.NullHandler"}, merge=False)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if by_torchrun():
            raise Refusal from UsageError(
                "a sweep under torchrun: its processes would each run the jobs\n"
                "start the sweep without torchrun: under trainer=ddp each job starts its own processes"
            )
        warn_of_hidden_files(config.hydra.runtime)
        _set_directory(config, "sweep")

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        os.chdir(config.hydra.runtime.cwd)  # a worker of a cluster may start elsewhere
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            find_data(config)
            store_config(config)


def find_data(config: DictConfig) -> None:
    """Make the folders of the data absolute, so that they are found from elsewhere and without VAE_LAB_DATA."""
    for key in MOVABLE:
        parent, _, name = key.rpartition(".")
        value = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        if not isinstance(value, str) or not value.strip():
            continue
        if name == "root" or not OmegaConf.is_interpolation(config[parent], name):  # others refer to data.root
            OmegaConf.update(config, key, str(Path(value).expanduser().absolute()))


def _set_directory(config: DictConfig, kind: Literal["run", "sweep"]) -> None:
    HydraConfig.instance().set_config(config)  # for ${hydra:...} in the path
    OmegaConf.set_readonly(config.hydra, False)
    key = f"hydra.{kind}.dir"
    folder = Path(OmegaConf.select(config, key))
    is_override = any(override.startswith(f"{key}=") for override in config.hydra.overrides.hydra)
    resume = OmegaConf.select(config, "resume")
    try:
        if resume is not None and kind == "sweep":
            raise UsageError(
                f"resume={resume}: continues a single run\nremove --multirun; a sweep goes on by {RESUME}=DIRECTORY"
            )
        if (sweep := OmegaConf.select(config, RESUME)) is not None and kind == "run":
            raise UsageError(f"{RESUME}={sweep}: continues a sweep\nadd --multirun, or resume=RUN for a single run")
        resumed = _resumed_run(config, resume, folder, is_override) if sweep is None else prepare_resumed_sweep(config)
        chosen = resumed or (claim(folder) if is_override else create(folder))
    except OSError as error:
        found = f"cannot write the run directory {folder}: {error.strerror}"
        raise Refusal from UsageError(f"{found}\nset another: hydra.run.dir=DIRECTORY")
    except UsageError as error:
        raise Refusal from error
    OmegaConf.update(config, key, str(chosen))
    if kind == "sweep":  # the config of each job is composed anew, from the overrides, maybe in another folder
        config.hydra.overrides.hydra.append(f"{key}='{chosen.resolve()}'")
        HydraConfig.instance().set_config(config)  # where the failures of its jobs are looked for in the end
        OmegaConf.set_readonly(config.hydra, False)
    elif resumed:
        config.hydra.output_subdir = None  # it keeps its stored config


def _resumed_run(config: DictConfig, resume: str | None, folder: Path, is_override: bool) -> Path | None:
    """The directory of the run that `resume` names, if any."""
    if resume is None:
        return None
    if resume == AUTO and is_override:
        run = folder if is_unfinished(folder, config) else None
    else:
        run = newest_unfinished(folder.parent, config) if resume == AUTO else require_resumable(resume)
    if run and is_override and run.resolve() != folder.resolve():
        raise UsageError(f"hydra.run.dir={folder}: a resumed run keeps its own directory\nremove hydra.run.dir")
    if run and not os.access(run, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write the run directory {run}: permission denied, or a read-only file system")
    return run


def create(folder: Path) -> Path:
    """Create the directory, or <folder>_2, <folder>_3 ... if it exists; mkdir is atomic, so runs never share one."""
    candidate, number = folder, 1
    while True:
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            number += 1
            candidate = folder.with_name(f"{folder.name}_{number}")
        else:
            return candidate


def claim(folder: Path) -> Path:
    """Use a directory that the user named, which may exist already. UsageError: it holds a run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (".hydra", "summary.json", "multirun.yaml"):
        if (folder / name).exists():
            resume = shlex.quote(f"resume={folder}")
            raise UsageError(f"{folder}: already holds a run ({name})\nchoose another directory, or {resume}")
    (folder / ".hydra").mkdir()  # of several runs started at once, one succeeds
    return folder
