"""The config stored in a run directory: loading it without running arbitrary code, and overriding it on resume."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from vae_lab.config.safety import checked_run_config
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
    try:
        written = OmegaConf.load(file)
        _require_current_version(written, run)
        config = OmegaConf.merge(
            OmegaConf.structured(Config), written if trusted else checked_run_config(written, file)
        )
    except (OmegaConfBaseException, YAMLError, RecursionError, OSError, UnicodeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{file}: {reason}\nwritten by another version of vae_lab?") from error
    assert isinstance(config, DictConfig)
    config.trusted = trusted  # the value of this call, not of the stored config
    OmegaConf.set_struct(config, True)
    return config


def _require_current_version(written: Any, run: Path | str) -> None:
    content = OmegaConf.to_container(written)  # as written: a resolver may run code
    trainer = content.get("trainer") if isinstance(content, dict) else None
    if isinstance(trainer, dict) and trainer.get("_target_") == TRAINER_OF_0_1:
        raise UsageError(f"{run}: a run of vae_lab 0.1, which version 0.2 cannot read; use vae_lab 0.1 for it")


def resumed_config(run: Path | str, overrides: Sequence[str], trusted: bool = False) -> DictConfig:
    """The config of a resumed run: the stored one with the overrides of trainer, logger and callbacks.

    A choice of trainer (`trainer=cpu`) is merged into the stored trainer; a choice of logger or callbacks replaces the
    stored ones. The running Hydra app looks up the choices. Overrides of Hydra's own keys are ignored.
    UsageError: the run cannot be resumed, or an override of any other key.
    """
    folder = require_resumable(run)
    parsed = OverridesParser.create().parse_overrides([text for text in overrides if is_run_override(text)])
    for override in parsed:
        _refuse_unless_resumable(override)
    config = load_config(folder, trusted)
    for override in sorted(parsed, key=_is_choice, reverse=True):
        _apply(override, config)
    config.resume = str(run)
    return config


def is_run_override(override: str) -> bool:
    """Whether an override concerns the run itself: not `resume`, `trusted` or a key of Hydra."""
    key = override.lstrip("+~").split("=")[0]
    return key not in ("resume", "trusted") and not key.startswith(("hydra.", "hydra/"))


def _refuse_unless_resumable(override: Override) -> None:
    if re.split(r"[./@]", override.key_or_group)[0] not in OVERRIDABLE_ON_RESUME:
        raise UsageError(
            f"{override.input_line}: a resumed run keeps its own {override.key_or_group}\n"
            f"only these may be changed: {', '.join(OVERRIDABLE_ON_RESUME)}; "
            "init_from=RUN starts a new run from its weights"
        )


def _is_choice(override: Override) -> bool:
    in_group = "." not in override.key_or_group and not override.is_delete()
    return in_group and isinstance(override.value(), str | list)


def _apply(override: Override, config: DictConfig) -> None:
    key, value = override.key_or_group, override.value()
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    added = override.is_add() or override.is_force_add()
    if _is_choice(override):
        options = value if isinstance(value, list) else [value]  # an empty list: null
        chosen = OmegaConf.merge({}, *(compose(config_name=f"{key}/{option}") for option in options))
        OmegaConf.update(config, key, OmegaConf.select(chosen, key), merge=key == "trainer", force_add=True)
    elif not added and (node is None or name not in node):
        raise UsageError(f"{override.input_line}: the run has no {key}\na new key is added by +{key}=...")
    elif override.is_delete():
        with open_dict(config):
            del node[name]
    else:
        OmegaConf.update(config, key, value, force_add=added)
