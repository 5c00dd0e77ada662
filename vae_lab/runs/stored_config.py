"""The config in a run directory: read without running code of its choice, and what a resumed run may change of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from vae_lab.config.safety import checked_run_config
from vae_lab.config.schema import Config
from vae_lab.runs.resume import CONFIG_FILE, require_resumable
from vae_lab.utils.errors import UsageError

RESUMABLE = ("trainer", "logger", "callbacks")  # what a resumed run may change


def load_config(run: Path | str, trusted: bool = False) -> DictConfig:
    """The config of a run, interpolations kept, typed by the schema. UsageError if the folder is no run.

    Unless it is trusted, a UsageError too where building it could run code of its choice: `vae_lab.config.safety`.
    """
    file = Path(run) / CONFIG_FILE
    if not file.is_file():
        found = f"no {CONFIG_FILE} in it" if Path(run).is_dir() else "no such folder"
        raise UsageError(f"{run} is no run: {found}\nexpected a folder that vae_lab.train wrote")
    try:
        written = OmegaConf.load(file)
        config = OmegaConf.merge(
            OmegaConf.structured(Config), written if trusted else checked_run_config(written, file)
        )
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
    parsed = OverridesParser.create().parse_overrides([text for text in overrides if changes_run(text)])
    for override in parsed:
        _refuse_unless_resumable(override)
    config = load_config(folder, trusted)
    for override in filter(_is_choice, parsed):
        _apply_choice(config, override)
    ConfigLoaderImpl._apply_overrides_to_config([it for it in parsed if not _is_choice(it)], config)
    config.resume = str(run)
    return config


def changes_run(override: str) -> bool:
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
