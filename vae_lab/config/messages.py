"""Short error messages for users from the exceptions of Hydra and OmegaConf."""

import re
import shlex
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import CompactHydraException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import MarkedYAMLError  # type: ignore[import-untyped]

from vae_lab.config.validation import did_you_mean, names_to_choose, tree
from vae_lab.utils.errors import UsageError, cause_chain, find_cause

MESSAGE_LINES = 4
WRONG_BEFORE_A_JOB = (HydraException, OSError, ValueError)
LAUNCHER_EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
MISSING_PLUGIN = rf"Could not load 'hydra/launcher/({'|'.join(LAUNCHER_EXTRAS)})'"
OTHER_SETS = (
    "\nfor pictures of your own: data=folder data.folder=PATH"
    "\nfor a set of torchvision's: data=torchvision data.dataset=CelebA"
)
OWN_FILES = "\nfiles of your own are found in ./conf, beside the command, or with --config-dir FOLDER"


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
        if message := _option_or_value(link, place) or _unreadable(link, place):
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
        case MissingConfigException() if missing := re.search(MISSING_PLUGIN, str(error)):
            return f"hydra/launcher={missing[1]}: not installed\npip install 'vae_lab[{LAUNCHER_EXTRAS[missing[1]]}]'"
        case MissingConfigException(missing_cfg_file=str(missing), options=[_, *_] as options):
            group, _, option = missing.rpartition("/")
            names = names_to_choose(option, options, f"{group}=")
            more = OTHER_SETS if group == "data" else "" if did_you_mean(option, options) else OWN_FILES
            return f"{group}={option}: no such option{place}{names}{more}"
        case OverrideParseException(override=override, message=message):
            reason = message.removeprefix(f"Error parsing override '{override}'\n").partition("\n")[0]
            key, equals, value = str(override).partition("=")
            quoted = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
            words = f", a text with special characters in quotes: {in_shell(quoted)}" if equals else ""
            return f"{override}: syntax error: {reason}\nexpected key=value{words}"
        case MissingMandatoryValue(full_key=str(key)):
            return f"{key}: has no value\nset {key}=..."
        case InterpolationResolutionError(full_key=str(key)) | ValidationError(full_key=str(key)):
            return f"{key}: {first_line}{place}"
    return None


def _unreadable(error: BaseException, place: str) -> str | None:
    """The message about a config file that cannot be read; None for other exceptions."""
    match error:
        case MarkedYAMLError(problem=problem, problem_mark=mark, context=context):
            tab = "; indent with spaces, not tabs" if "\\t" in str(problem) else ""
            where = f"{mark.name}, line {mark.line + 1}: " if mark else ""
            return f"{where}{context + ', ' if context else ''}{problem}{tab}"
        case GrammarParseError():
            return f"{str(error).splitlines()[0]}{place or ', in a reference ${...}'}"
        case UnicodeDecodeError():
            return f"a config file is not UTF-8: {error}\nsave it as UTF-8"
    return None


def _unknown_key(error: OmegaConfBaseException, directory: str, place: str) -> str:
    full_key, key, node = str(error.full_key), str(error.key), error.parent_node
    prefix = full_key.removesuffix(key)
    names = [str(name) for name in node if str(name)[0] != "_"] if isinstance(node, DictConfig) else []
    if not prefix and "model" in names:  # vae_lab.train, at the root; the other commands have no groups to show
        names = sorted(name for name in {*names, *_groups(directory)} - {"hydra"} if ("/" in name) == ("/" in key))
    if message := _without_package(full_key, place):
        return message
    found = f"{full_key}: there is no such key{place}{_options_with(full_key, directory)}"
    content = OmegaConf.to_container(node) if node is not None else {}
    nested = min((name for name, _ in tree(content) if name.endswith(f".{key}")), key=len, default=None)
    if nested and not did_you_mean(key, names):
        found += f"\ndid you mean {prefix}{nested}?"
    return found + names_to_choose(key, names, prefix)


def in_shell(word: str) -> str:
    """A word as a shell takes it; in double quotes, which are easier to read, where that is enough."""
    return shlex.quote(word) if re.search(r'["$`!]|\\\\', word) or "'" not in word else f'"{word}"'


def _without_package(key: str, place: str) -> str | None:
    """The message about a file of settings for all groups that Hydra took for those of its own group."""
    if not place.startswith(f" (in {key}/") or key in ("data", "model", "trainer", "callbacks", "logger"):
        return None
    return (
        f"{place[5:-1]}: its settings are not at the root of the config\nmake its first line `# @package _global_`, "
        "with nothing before it (save it as UTF-8 without a byte order mark)"
    )


def _options_with(key: str, directory: str) -> str:
    """A line that names the options of a group whose files have this key: data.folder is one of data=folder."""
    group, _, name = key.partition(".")
    pattern = re.compile(rf"^( {{2}})?{re.escape(name)}:", re.MULTILINE)
    found = [file.stem for file in sorted(Path(directory, group).glob("*.yaml")) if pattern.search(file.read_text())]
    return f"\nit is a key of {', '.join(f'{group}={option}' for option in found)}: add that" if name and found else ""


def _first_lines(message: str, directory: str) -> str:
    if group := re.search(r"Could not override '([^'@]+)", message):
        first_line, groups = message.splitlines()[0], sorted(_groups(directory))
        if wrong := re.match(r"In '((\w+)/[^']+)': Could not override '[^'@]+@\2\.", message):
            return str(_without_package(wrong[2], f" (in {wrong[1]}.yaml)"))
        return first_line if group[1] in groups else first_line + names_to_choose(group[1], groups)
    lines = [line.strip() for line in message.splitlines() if line.strip() and not line.startswith("See https")]
    return "\n".join(lines[:MESSAGE_LINES])


def _groups(directory: str) -> set[str]:
    root = Path(directory)
    return {file.parent.relative_to(root).as_posix() for file in root.rglob("*.yaml")} - {".", "hydra"}
