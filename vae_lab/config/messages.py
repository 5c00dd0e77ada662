"""Short error messages for users from the exceptions of Hydra and OmegaConf."""

import re
from pathlib import Path

from hydra.errors import CompactHydraException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from vae_lab.config.validation import did_you_mean, names_to_choose, tree
from vae_lab.utils.errors import UsageError, cause_chain, find_cause

MESSAGE_LINES = 4
WRONG_BEFORE_A_JOB = (HydraException, OSError, ValueError)


def usage_message(error: BaseException, directory: str, in_job: bool = False) -> str | None:
    """An error message for a wrong request: what was found, where, what was expected; None for any other failure.

    `directory` holds the configs. In a job only a UsageError or a config error is a wrong request; before it, every
    unreadable or unwritable file is one too.
    """
    if usage := find_cause(error, UsageError):
        return str(usage)
    composed = find_cause(error, CompactHydraException)  # None: the code failed, not the composition
    file = re.match(r"In '([^']+/[^']+)'", str(composed))  # any but the primary config
    place = f" (in {file[1]}.yaml)" if file else ""
    for link in cause_chain(error):
        if message := _option_or_value(link, place):
            return message
        if isinstance(link, ConfigAttributeError | ConfigKeyError) and composed and link.full_key:
            return _unknown_key(link, directory, place)
    if composed:
        return _first_lines(str(composed), directory)
    return _first_lines(str(error), directory) if not in_job and isinstance(error, WRONG_BEFORE_A_JOB) else None


def _option_or_value(error: BaseException, place: str) -> str | None:
    """The message about an option of a group, or about the value of a key; None for other exceptions."""
    first_line = str(error).partition("\n")[0]
    match error:
        case MissingConfigException(missing_cfg_file=str(missing), options=[_, *_] as options):
            group, _, option = missing.rpartition("/")
            names = names_to_choose(option, options, f"{group}=")
            return f"{group}={option}: no such option{place}{names}"
        case OverrideParseException(override=override, message=message):
            reason = message.removeprefix(f"Error parsing override '{override}'\n").partition("\n")[0]
            return f"{override}: syntax error: {reason}\nexpected key=value; quote a value with special characters"
        case MissingMandatoryValue(full_key=str(key)):
            return f"{key}: has no value\nset {key}=..."
        case InterpolationResolutionError(full_key=str(key)) | ValidationError(full_key=str(key)):
            return f"{key}: {first_line}{place}"
    return None


def _unknown_key(error: OmegaConfBaseException, directory: str, place: str) -> str:
    full_key, key, node = str(error.full_key), str(error.key), error.parent_node
    prefix = full_key.removesuffix(key)
    names = [str(name) for name in node if str(name)[0] != "_"] if isinstance(node, DictConfig) else []
    if not prefix and "model" in names:  # vae_lab.train, at the root; the other commands have no groups to show
        names = sorted(name for name in {*names, *_groups(directory)} - {"hydra"} if ("/" in name) == ("/" in key))
    found = f"{full_key}: there is no such key{place}"
    content = OmegaConf.to_container(node) if node is not None else {}
    nested = min((name for name, _ in tree(content) if name.endswith(f".{key}")), key=len, default=None)
    if nested and not did_you_mean(key, names):
        found += f"\ndid you mean {prefix}{nested}?"
    return found + names_to_choose(key, names, prefix)


def _first_lines(message: str, directory: str) -> str:
    if group := re.search(r"Could not override '([^'@]+)", message):
        first_line, groups = message.splitlines()[0], sorted(_groups(directory))
        return first_line if group[1] in groups else first_line + names_to_choose(group[1], groups)
    lines = [line.strip() for line in message.splitlines() if line.strip() and not line.startswith("See https")]
    return "\n".join(lines[:MESSAGE_LINES])


def _groups(directory: str) -> set[str]:
    root = Path(directory)
    return {file.parent.relative_to(root).as_posix() for file in root.rglob("*.yaml")} - {".", "hydra"}
