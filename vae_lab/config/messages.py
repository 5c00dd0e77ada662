"""Short error messages for users from the exceptions of Hydra and OmegaConf."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import (
    CompactHydraException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from vae_lab.config.validation import did_you_mean, nearest_name, tree
from vae_lab.utils.errors import UsageError, cause_chain, find_cause

MESSAGE_LINES = 4
WRONG_BEFORE_A_JOB = (HydraException, OSError, ValueError)


def usage_message(error: BaseException, directory: str, in_job: bool = False) -> str | None:
    """An error message for a wrong request: what was found, where, what was expected; None for any other failure.

    `directory` holds the configs. An exception raised in a job counts as a wrong request only if it is a UsageError,
    a config error, or the ValueError of a constructor; before a job, so does every unreadable or unwritable file.
    """
    if usage := find_cause(error, UsageError):
        return str(usage)
    composed = find_cause(error, CompactHydraException)
    explained = (_explain(link, composed, directory) for link in cause_chain(error))
    if message := next(filter(None, explained), None):
        return message
    if composed and not isinstance(composed, InstantiationException):
        return _general(str(composed), directory)
    return _general(str(error), directory) if not in_job and isinstance(error, WRONG_BEFORE_A_JOB) else None


def _explain(error: BaseException, composed: CompactHydraException | None, directory: str) -> str | None:
    """The message of one exception of a chain; `composed` is the one that Hydra raised."""
    first_line = str(error).partition("\n")[0]
    # The config file that Hydra names; the primary config says nothing about the location.
    file = re.match(r"In '([^']+/[^']+)'", str(composed))
    place = f" (in {file[1]}.yaml)" if file else ""
    text = None
    match error:
        case MissingConfigException(missing_cfg_file=str(missing), options=[_, *_] as options):
            group, _, option = missing.rpartition("/")
            text = _with_names(f"{group}={option}: no such option{place}", option, options, f"{group}=")
        case OverrideParseException(override=override, message=message):
            reason = message.removeprefix(f"Error parsing override '{override}'\n").partition("\n")[0]
            text = f"{override}: syntax error: {reason}\nexpected key=value; quote a value with special characters"
        case InstantiationException(__cause__=ValueError() as cause):
            key = re.search(r"full_key: (.+)", str(error))
            text = f"{key[1]}: {cause}" if key else str(cause)
        case ConfigAttributeError() | ConfigKeyError() if composed and error.full_key:
            text = _unknown_key(error, str(composed), directory, place)
        case MissingMandatoryValue(full_key=str(key)):
            text = f"{key}: has no value\nset {key}=..."
        case InterpolationResolutionError(full_key=str(key)):
            reference = re.search(r"Interpolation key '(.+)' not found", first_line)
            near = nearest_name(reference[1], _dotted_keys(error)) if reference else None
            text = f"{key}: {first_line}" + (f"\ndid you mean ${{{near}}}?" if near else "")
        case ValidationError(full_key=str(key)):
            text = f"{key}: {first_line}{place}"
    return text


def _unknown_key(error: OmegaConfBaseException, composed: str, directory: str, place: str) -> str:
    typed = re.search(r"use \+(.+)", composed)
    full_key, key = str(error.full_key), str(error.key)
    parent = full_key.removesuffix(key).rstrip(".")
    node = error.parent_node
    names = [str(name) for name in node if str(name)[0] != "_"] if isinstance(node, DictConfig) else []
    if not parent and "model" in names:  # vae_lab.train, at the root; the other commands have no groups to show
        both = {*names, *_groups(directory)} - {"hydra"}
        names = sorted(name for name in both if ("/" in name) == ("/" in key))
    where = f"in {parent}" if parent else "at the root of the config"
    found = f"{typed[1] if typed else full_key}: there is no '{key}' {where}{place}"
    elsewhere = min((name for name in _dotted_keys(error) if name.endswith(f".{key}")), key=len, default=None)
    if elsewhere and not nearest_name(key, names):
        found += f"\ndid you mean {elsewhere}?"
    return _with_names(found, key, names, f"{parent}." if parent else "")


def _general(message: str, directory: str) -> str:
    if group := re.search(r"Could not override '([^'@]+)", message):
        first_line, groups = message.splitlines()[0], sorted(_groups(directory))
        return first_line if group[1] in groups else _with_names(first_line, group[1], groups)
    lines = [line.strip() for line in message.splitlines() if line.strip() and not line.startswith("See https")]
    return "\n".join(lines[:MESSAGE_LINES])


def _with_names(found: str, word: str, names: Sequence[str], prefix: str = "") -> str:
    expected = f"\nexpected one of: {', '.join(names)}" if names else ""
    return f"{found}{did_you_mean(word, names, prefix)}{expected}"


def _groups(directory: str) -> set[str]:
    root = Path(directory)
    return {file.parent.relative_to(root).as_posix() for file in root.rglob("*.yaml")} - {".", "hydra"}


def _dotted_keys(error: OmegaConfBaseException) -> Iterable[str]:
    """The full keys of the config in which an exception of OmegaConf was raised."""
    root: Any = error.parent_node._get_root() if error.parent_node is not None else {}
    content = OmegaConf.to_container(root) if OmegaConf.is_config(root) else {}
    return [key for key, _ in tree(content) if key and not key.startswith("hydra")]
