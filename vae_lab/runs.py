"""The run directory: a fresh folder for every run, and the config in it.

In a primary config: `hydra.run.dir: ${run_dir:outputs}`, `hydra.sweep.dir: ${sweep_dir:outputs}` and
`hydra.callbacks.run_folder._target_: vae_lab.runs.RunFolder`.
"""

import os
import re
from collections.abc import Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from vae_lab.config import Config
from vae_lab.errors import UsageError
from vae_lab.resuming import AUTO, CONFIG_FILE, is_unfinished, newest_unfinished, require_resumable, run_of
from vae_lab.trust import vetted

RESUMABLE = ("trainer", "logger", "callbacks")  # what a resumed run may change


# --- the folder -------------------------------------------------------------------------------------------


def register_resolvers() -> None:
    """Register `${run_dir:ROOT}` and `${sweep_dir:ROOT}`; every reference in one config gives one folder."""
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)
    OmegaConf.register_new_resolver("sweep_dir", _sweep_dir, replace=True)


class RunFolder(Callback):
    """Refuses, before Hydra writes anything, a folder that holds a run already or cannot be written.

    Hydra turns what a callback raises into a warning; `vae_lab.cli` turns that warning into the error again.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the folder of a single run; a resumed one keeps the config that it has."""
        if "LOCAL_RANK" in os.environ:  # a child of Lightning's: the folder is the parent's
            return
        folder = _chosen_folder(config, "hydra.run.dir")
        resume = OmegaConf.select(config, "resume")
        if resume is None or (resume == AUTO and not is_unfinished(folder, config)):
            _open_fresh(folder, "hydra.run.dir")
        elif resume == AUTO or folder.resolve() == run_of(resume).resolve():
            _require_writable(folder)
            config.hydra.output_subdir = None
        else:
            raise UsageError(f"hydra.run.dir={folder}: a resumed run goes on in its own folder\nleave it out")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the folder of a sweep."""
        if OmegaConf.select(config, "resume") is not None:
            raise UsageError(f"resume={config.resume}: one run is resumed at a time\nleave out --multirun")
        _open_fresh(_chosen_folder(config, "hydra.sweep.dir"), "hydra.sweep.dir")


def _chosen_folder(config: DictConfig, key: str) -> Path:
    HydraConfig.instance().set_config(config)  # for ${hydra:...} in the folder's name
    OmegaConf.set_readonly(config.hydra, False)
    return Path(OmegaConf.select(config, key))


def _run_dir(outputs: str, *, _root_: DictConfig) -> str:
    resume, parent = OmegaConf.select(_root_, "resume"), Path(outputs) / _run_name(_root_)
    if resume == AUTO:
        made = OmegaConf.get_cache(_root_)["vae_lab.runs"]  # asked again, it has not ended meanwhile
        unfinished = made.get(parent) or newest_unfinished(parent, _root_)
        if unfinished is not None:
            made[parent] = unfinished
            return str(unfinished)
    elif resume is not None:
        return str(require_resumable(resume))
    return _fresh(parent, _root_)


def _sweep_dir(outputs: str, *, _root_: DictConfig) -> str:
    return _fresh(Path(outputs) / "sweeps", _root_)


def _run_name(config: DictConfig) -> str:
    choices = config.hydra.runtime.choices
    pair = "-".join(str(choices[group]) for group in ("model", "data") if choices.get(group))
    name = config.get("name") or choices.get("experiment") or pair or "run"
    return re.sub(r"[^\w.=+-]+", "_", str(name)).lstrip(".") or "run"  # stays inside outputs/


def _fresh(parent: Path, config: DictConfig) -> str:
    """A new folder named by the time; only named, not made, where nothing runs (`--cfg`).

    Kept where Hydra keeps `${now:}`: with the config, from which the jobs of a sweep copy it.
    """
    made = OmegaConf.get_cache(config)["vae_lab.runs"]
    if parent not in made:
        folder = parent / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
        made[parent] = folder if config.hydra.mode is None else _claim(folder)
    return str(made[parent])


def _claim(folder: Path) -> Path:
    """Make the folder, or <folder>_2, _3 ... if another run was faster: mkdir lets only one of them win."""
    for number in count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            if candidate.exists():  # else a file stands in the way further up
                continue
            raise _not_writable(folder, "a file is in the way") from None
        except OSError as error:
            raise _not_writable(folder, str(error.strerror)) from error
        return candidate
    raise AssertionError("count() has no end")


def _open_fresh(folder: Path, key: str) -> None:
    held = next((name for name in (".hydra", "summary.json", "multirun.yaml") if (folder / name).exists()), None)
    if held is not None:
        raise UsageError(
            f"{key}={folder}: holds a run already ({held})\ngive another folder; to go on with a run, resume={folder}"
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
    return UsageError(f"cannot write the run folder {folder}: {reason}\nhydra.run.dir=FOLDER names another")


# --- the config in it -------------------------------------------------------------------------------------


def load_config(run: Path | str, trusted: bool = False) -> DictConfig:
    """The config of a run, interpolations kept, typed by the schema. UsageError if the folder is no run.

    Unless it is trusted, a UsageError too where building it could run code of its choice: `vae_lab.trust`.
    """
    file = Path(run) / CONFIG_FILE
    if not file.is_file():
        found = f"no {CONFIG_FILE} in it" if Path(run).is_dir() else "no such folder"
        raise UsageError(f"{run} is no run: {found}\nexpected a folder that vae_lab.train wrote")
    try:
        written = OmegaConf.load(file)
        config = OmegaConf.merge(OmegaConf.structured(Config), written if trusted else vetted(written, file))
    except (OmegaConfBaseException, YAMLError, RecursionError, OSError, UnicodeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{file}: {reason}\nwritten by another version of vae_lab?") from error
    assert isinstance(config, DictConfig)
    config.trusted = trusted  # said here and now, not by the run
    OmegaConf.set_struct(config, True)
    return config


def resumed_config(run: Path | str, overrides: Sequence[str], trusted: bool = False) -> DictConfig:
    """The config to go on with: the run's own, and what the command line says of trainer, logger, callbacks.

    A choice (`trainer=cpu`) changes what the file of that choice says and nothing else of the trainer, and
    takes the place of the logger or the callbacks; it is found by the Hydra app that is running. Hydra's
    keys are ignored. UsageError if the folder cannot be resumed or an override names anything else.
    """
    folder = require_resumable(run)
    parsed = OverridesParser.create().parse_overrides([text for text in overrides if concerns_run(text)])
    for override in parsed:
        _refuse_unless_resumable(override)
    config = load_config(folder, trusted)
    for override in filter(_is_choice, parsed):
        _apply_choice(config, override)
    ConfigLoaderImpl._apply_overrides_to_config([it for it in parsed if not _is_choice(it)], config)
    config.resume = str(run)
    return config


def concerns_run(override: str) -> bool:
    """Whether an override asks for something of a run, beside which it is."""
    key = override.lstrip("+~").split("=")[0]
    return key not in ("resume", "trusted") and not key.startswith(("hydra.", "hydra/"))


def _refuse_unless_resumable(override: Override) -> None:
    if re.split(r"[./@]", override.key_or_group)[0] not in RESUMABLE:
        raise UsageError(
            f"{override.input_line}: a resumed run keeps its own {override.key_or_group}\n"
            f"what may be changed: {', '.join(RESUMABLE)}; init_from=RUN starts a new run from its weights"
        )


def _is_choice(override: Override) -> bool:
    in_group = "." not in override.key_or_group and not override.is_delete()
    return in_group and isinstance(override.value(), str | list)


def _apply_choice(config: DictConfig, override: Override) -> None:
    group, value = override.key_or_group, override.value()
    options = value if isinstance(value, list) else [value]
    chosen = OmegaConf.merge(*(compose(config_name=f"{group}/{option}") for option in options))
    package = group.replace("/", ".")
    content = OmegaConf.select(chosen, package, default={})
    OmegaConf.update(config, package, content, merge=group == "trainer", force_add=True)
