"""The config stored in a run directory: loading it without running arbitrary code, and overriding it on resume."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from vae_lab.config.safety import require_harmless
from vae_lab.config.schema import Config
from vae_lab.runs.resume import CONFIG_FILE, require_resumable
from vae_lab.utils.errors import UsageError

OVERRIDABLE_ON_RESUME = ("trainer", "logger", "callbacks")  # groups that a resumed run may override
TRAINER_OF_0_1 = "vae_lab.trainer.build_trainer"


def load_config(run: Path | str, trusted: bool = False) -> DictConfig:
    """The config of a run, interpolations kept, typed by the schema.

    UsageError: not a run directory, or one of vae_lab 0.1; unless trusted, a config that could run arbitrary code
    (`vae_lab.config.safety`).
    """
    file = Path(run) / CONFIG_FILE
    if not file.is_file():
        found = f"has no {CONFIG_FILE}" if Path(run).is_dir() else "does not exist"
        raise UsageError(f"Not a run directory: {run} {found}\nexpected a directory written by vae_lab.train")
    if TRAINER_OF_0_1.encode() in file.read_bytes():
        raise UsageError(f"{run}: a run of vae_lab 0.1, which version 0.2 cannot read; use vae_lab 0.1 for it")
    config = read_config(file, Config, trusted, "written by another version of vae_lab?")
    config.trusted = trusted  # the value of this call, not of the stored config
    return config


def read_config(file: Path, schema: type, trusted: bool, advice: str) -> DictConfig:
    """A config file of a run directory, typed by a schema. UsageError: unreadable, or, unless trusted, harmful."""
    try:
        written = OmegaConf.load(file)
        if not trusted:
            require_harmless(written, file)
        config = OmegaConf.merge(OmegaConf.structured(schema), written)
    except (OmegaConfBaseException, YAMLError, RecursionError, OSError, UnicodeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{file}: {reason}\n{advice}") from error
    assert isinstance(config, DictConfig)
    OmegaConf.set_struct(config, True)
    return config


def resumed_config(composed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The stored config of the run that `composed.resume` names, with the overrides of trainer, logger and callbacks.

    composed: the config of the command line, which holds the overridden values. A choice of trainer (`trainer=cpu`) is
    merged into the stored trainer; a choice of logger or callbacks replaces the stored ones.
    UsageError: the run cannot be resumed, or an override of any other key.
    """
    config = load_config(require_resumable(composed.resume), composed.trusted)
    for override in sorted(filter(is_run_override, overrides), key=lambda text: "." in _key(text)):  # choices first
        if re.split(r"[./@]", _key(override))[0] not in OVERRIDABLE_ON_RESUME:
            raise UsageError(
                f"{override}: a resumed run keeps its own {_key(override)}\n"
                f"only these may be changed: {', '.join(OVERRIDABLE_ON_RESUME)}; "
                "init_from=RUN starts a new run from its weights"
            )
        _apply(override, config, composed)
    config.resume = composed.resume
    return config


def is_run_override(override: str) -> bool:
    """Whether an override changes the run."""
    return _key(override) not in ("resume", "trusted")


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _apply(override: str, config: DictConfig, composed: DictConfig) -> None:
    key = _key(override)
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if key == "trainer":
        config.trainer.merge_with(compose(config_name=override.replace("=", "/")).trainer)
    elif not override.startswith("+") and (node is None or name not in node):
        raise UsageError(f"{override}: the run has no {key}\na new key is added by +{key}=...")
    elif override.startswith("~") and parent:
        with open_dict(config):
            del node[name]
    else:
        OmegaConf.update(config, key, OmegaConf.select(composed, key), merge=False, force_add=True)
