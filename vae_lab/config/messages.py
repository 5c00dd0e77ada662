"""Short error messages for users from the exceptions of Hydra and OmegaConf."""

import re
from collections.abc import Iterator, Sequence
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

from vae_lab.config.validation import nearest_name
from vae_lab.utils.errors import UsageError, cause_chain, find_cause

MESSAGE_LINES = 4
MISMATCH = r"Value '(.*)' of type '(.*)' (?:could not be converted to|is incompatible with type hint) '?(.*?)'?$"
TYPE_NAMES = {
    **{"Integer": "an integer", "Float": "a number", "Boolean": "true or false"},
    **{"int": "an integer", "float": "a number", "bool": "true or false", "str": "a string"},
}


def usage_message(error: BaseException, directory: str, in_job: bool = False) -> str | None:
    """An error message for a wrong request: what was found, where, what was expected; None for any other failure.

    `directory` holds the configs. An exception raised in a job counts as a wrong request only if it is a UsageError,
    a config error, or the ValueError of a constructor; before a job, so does every unreadable or unwritable file.
    """
    usage = find_cause(error, UsageError)
    if usage:
        return str(usage)
    explained = _explain_hydra(error) or _explain_omegaconf(error, directory)
    if explained:
        return explained
    general = find_cause(error, CompactHydraException)
    if general and not isinstance(general, InstantiationException):
        return _unknown_group(str(general), directory) or _tidy(str(general))
    if not in_job and isinstance(error, HydraException | OSError | ValueError):
        return _tidy(str(error))
    return None


def _explain_hydra(error: BaseException) -> str | None:
    option = find_cause(error, MissingConfigException)
    if option and option.options:
        return _unknown_option(option)
    syntax = find_cause(error, OverrideParseException)
    if syntax:
        return f"{_syntax_error(syntax)}\nexpected key=value; quote a value with special characters"
    built = find_cause(error, InstantiationException)
    if built and isinstance(built.__cause__, ValueError):
        where = re.search(r"full_key: (.+)", str(built))
        return f"{where[1]}: {built.__cause__}" if where else str(built.__cause__)
    return None


def _explain_omegaconf(error: BaseException, directory: str) -> str | None:
    cause = next((e for e in cause_chain(error) if isinstance(e, OmegaConfBaseException) and e.full_key), None)
    composed = find_cause(error, CompactHydraException)
    place = _place(composed)
    match cause:
        case ConfigAttributeError() | ConfigKeyError() if composed:
            return _unknown_key(cause, str(composed), directory, place)
        case MissingMandatoryValue():
            return f"{cause.full_key}: has no value\nset {cause.full_key}=..."
        case InterpolationResolutionError():
            return _broken_reference(cause)
        case ValidationError():
            return f"{cause.full_key}: {_type_mismatch(cause)}{place}"
    return None


def _syntax_error(error: OverrideParseException) -> str:
    reason = error.message.removeprefix(f"Error parsing override '{error.override}'\n").partition("\n")[0]
    at = f" ({reason})" if error.override not in reason else ""
    return f"{error.override}: syntax error{at}"


def _unknown_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = list(error.options or ())
    near = nearest_name(option, options)
    found = f"{group}={option}: no such option{_place(error)}"
    return _with_names(found, near and f"{group}={near}", options)


def _unknown_group(message: str, directory: str) -> str | None:
    group = re.search(r"Could not override '(.+?)'", message)
    if group is None:
        return None
    groups = sorted(_groups(directory))
    return _with_names(message.splitlines()[0], nearest_name(group[1].partition("@")[0], groups), groups)


def _unknown_key(error: OmegaConfBaseException, composed: str, directory: str, place: str) -> str:
    typed = re.search(r"use \+(.+)", composed)
    full_key, key = str(error.full_key), str(error.key)
    parent = full_key.removesuffix(key).rstrip(".")
    node = error.parent_node
    names = [str(name) for name in node] if isinstance(node, DictConfig) else []
    if not parent:
        nested = "/" in key
        composed_of_groups = "model" in names  # vae_lab.train; other commands take keys only
        groups = {group for group in _groups(directory) if ("/" in group) == nested and composed_of_groups}
        names = sorted(groups if nested else {*names, *groups} - {"hydra"})
    near = nearest_name(key, names)
    root = node._get_root() if node is not None else None
    near_key = _join(parent, near) if near else _elsewhere(key, root)
    where = f"in {parent}" if parent else "at the root of the config"
    found = f"{typed[1] if typed else full_key}: there is no '{key}' {where}{place}"
    return _with_names(found, near_key, [name for name in names if not name.startswith("_")])


def _place(error: BaseException | None) -> str:
    """The config file that Hydra names, unless it is the primary config, which says nothing about the location."""
    file = re.match(r"In '([^']+/[^']+)'", str(error))
    return f" (in {file[1]}.yaml)" if file else ""


def _with_names(found: str, near: str | None, names: Sequence[str]) -> str:
    hint = f"\ndid you mean {near}?" if near else ""
    expected = f"\nexpected one of: {', '.join(names)}" if names else ""
    return f"{found}{hint}{expected}"


def _broken_reference(error: OmegaConfBaseException) -> str:
    message = str(error).splitlines()[0]
    missing = re.search(r"Interpolation key '(.+)' not found", message)
    root = error.parent_node._get_root() if error.parent_node is not None else None
    near = nearest_name(missing[1], _dotted_keys(root)) if missing else None
    return _with_names(f"{error.full_key}: {message}", near and f"${{{near}}}", ())


def _type_mismatch(error: OmegaConfBaseException) -> str:
    message = str(error).splitlines()[0]
    parts = re.match(MISMATCH, message)
    if parts is None:
        return message
    value, found, expected = parts.groups()
    names = [name for name in re.findall(r"\w+", expected) if name not in ("Optional", "Union")]
    spoken = " or ".join(TYPE_NAMES.get(name, name) for name in names)
    return f"found '{value}' ({found}), expected {spoken}"


def _groups(directory: str) -> set[str]:
    root = Path(directory)
    return {file.parent.relative_to(root).as_posix() for file in root.rglob("*.yaml")} - {"."}


def _elsewhere(name: str, root: Any) -> str | None:
    """The shortest full key whose last part is `name`."""
    return min((key for key in _dotted_keys(root) if key.endswith(f".{name}")), key=len, default=None)


def _dotted_keys(node: Any, parent: str = "") -> Iterator[str]:
    if not OmegaConf.is_dict(node) or node._is_none() or node._is_missing() or node._is_interpolation():
        return
    for name in node:
        key = _join(parent, str(name))
        if key != "hydra":
            yield key
            yield from _dotted_keys(node._get_node(name), key)


def _join(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def _tidy(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("See https")]
    return "\n".join(lines[:MESSAGE_LINES])
