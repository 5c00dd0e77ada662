"""The config stored in a run directory: loading it without running arbitrary code, and overriding it on resume."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from vae_lab.config.safety import require_harmless
from vae_lab.config.schema import Config
from vae_lab.runs.resume import CONFIG_FILE, require_resumable, run_dir_of
from vae_lab.utils.errors import UsageError

log = logging.getLogger("vae_lab")
OVERRIDABLE_ON_RESUME = ("trainer", "logger", "callbacks")  # groups that a resumed run may override
MOVABLE = ("data.root", "data.folder", "data.file", "data.cache_dir")  # keys of data that may lie elsewhere now
TRAINER_OF_0_1 = "vae_lab.trainer.build_trainer"
CHANGED = "data.changed"  # accept: resume with other images


def load_config(run: Path | str, trusted: bool = False, lenient: bool = False) -> DictConfig:
    """The config of a run (or of a checkpoint in it), interpolations kept, typed by the schema.

    Relative folders of data are those from which the run was started. lenient: options that this version does not have
    are ignored with a warning, where only the weights are used.
    UsageError: not a run directory, or one of vae_lab 0.1; unless trusted, a config that could run arbitrary code
    (`vae_lab.config.safety`).
    """
    run = run_dir_of(run)
    file = run / CONFIG_FILE
    if not file.is_file():
        found = f"has no {CONFIG_FILE}" if run.is_dir() else "does not exist"
        raise UsageError(f"Not a run directory: {run} {found}\nexpected a directory written by vae_lab.train")
    if TRAINER_OF_0_1.encode() in file.read_bytes():
        raise UsageError(f"{run}: a run of vae_lab 0.1, which version 0.2 cannot read; use vae_lab 0.1 for it")
    config = read_config(file, Config, trusted, "written by another version of vae_lab?", lenient)
    _find_folders(config, file.with_name("hydra.yaml"))
    config.trusted = trusted  # the value of this call, not of the stored config
    return config


def read_config(file: Path, schema: type, trusted: bool, advice: str, lenient: bool = False) -> DictConfig:
    """A config file of a run directory, typed by a schema. UsageError: unreadable, or, unless trusted, harmful."""
    try:
        written = OmegaConf.load(file)
        if not trusted:
            require_harmless(written, file)
        typed = OmegaConf.structured(schema)
        if lenient:
            _drop_unknown(written, typed, file)
        config = OmegaConf.merge(typed, written)
    except (OmegaConfBaseException, YAMLError, RecursionError, OSError, UnicodeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{file}: {reason}\n{advice}") from error
    assert isinstance(config, DictConfig)
    OmegaConf.set_struct(config, True)
    return config


def _drop_unknown(written: Any, typed: DictConfig, file: Path) -> None:
    """Remove the options, also of the trainer, that the schema does not have."""
    for node, known in ((written, typed), (written.get("trainer"), typed.trainer)):
        for name in [name for name in node or () if name not in known.keys()]:  # noqa: SIM118 - missing ones count
            log.warning("%s: this version of vae_lab has no option %s, which is ignored", file, name)
            del node[name]


def _find_folders(config: DictConfig, hydra_file: Path) -> None:
    """Make folders of data absolute that are no longer here, but where the run was started, which Hydra has stored."""
    try:
        start = OmegaConf.select(OmegaConf.load(hydra_file), "hydra.runtime.cwd")
    except (OmegaConfBaseException, YAMLError, OSError, UnicodeError):
        return
    for key in MOVABLE if start else ():
        value = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        if isinstance(value, str) and not Path(value).exists() and (there := Path(start, value)).exists():
            OmegaConf.update(config, key, str(there))


def move_data(config: DictConfig, moved: Mapping[Any, Any]) -> None:
    """Set where the data of a run are now. UsageError: it reads no such thing."""
    for key, value in moved.items():
        if value is not None:
            if key not in config.data:
                names = ", ".join(map(str, config.data))
                raise UsageError(f"data.{key!s}: this run reads no {key!s}; its data config has {names}")
            config.data[key] = value


def resumed_config(composed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The stored config of the run that `composed.resume` names, with the overrides that a resumed run accepts.

    Those are of trainer, logger and callbacks, of the learning rate, and of where the data are now.

    composed: the config of the command line, which holds the overridden values. A choice of trainer (`trainer=cpu`) is
    merged into the stored trainer; a choice of logger or callbacks replaces the stored ones.
    UsageError: the run cannot be resumed, or an override of any other key.
    """
    config = load_config(require_resumable(composed.resume), composed.trusted)
    if (accepted := OmegaConf.select(composed, CHANGED)) not in (None, "accept"):
        raise UsageError(f"{CHANGED}={accepted}: expected accept, to resume with other images")
    for override in sorted(filter(is_run_override, overrides), key=lambda text: "." in _key(text)):  # choices first
        key = _key(override)
        if re.split(r"[./@]", key)[0] not in OVERRIDABLE_ON_RESUME and key not in ("optimizer.lr", *MOVABLE):
            raise UsageError(
                f"{override}: a resumed run keeps its own {key}\n"
                f"only these may be changed: {', '.join(OVERRIDABLE_ON_RESUME)}, optimizer.lr, {', '.join(MOVABLE)}; "
                "init_from=RUN starts a new run from its weights"
            )
        _apply(override, config, composed)
    config.resume = composed.resume
    return config


def resumed_job_config(composed: DictConfig, run: Path) -> DictConfig:
    """The stored config of an unfinished job of a sweep; folders of data that are gone are those composed now."""
    composed.resume = str(run)
    config = resumed_config(composed, ())
    stored = {key: OmegaConf.select(config, key, throw_on_resolution_failure=False) for key in MOVABLE}
    gone = [key for key, value in stored.items() if isinstance(value, str) and not Path(value).exists()]
    move_data(config, {key.rpartition(".")[2]: OmegaConf.select(composed, key) for key in gone})
    return config


def is_run_override(override: str) -> bool:
    """Whether an override changes the run."""
    return _key(override) not in ("resume", "trusted", CHANGED)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _apply(override: str, config: DictConfig, composed: DictConfig) -> None:
    key = _key(override)
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if key == "trainer":
        config.trainer.merge_with(compose(config_name=override.replace("=", "/")).trainer)
    elif key in MOVABLE:
        move_data(config, {name: OmegaConf.select(composed, key)})
    elif not override.startswith("+") and (node is None or name not in node):
        raise UsageError(f"{override}: the run has no {key}\na new key is added by +{key}=...")
    elif override.startswith("~") and parent:
        with open_dict(config):
            del node[name]
    else:
        OmegaConf.update(config, key, OmegaConf.select(composed, key), merge=False, force_add=True)
