"""How every command starts and ends: Hydra runs the task; what goes wrong is a few lines and an exit code.

0 done, 1 the run failed, 2 the request was wrong, 130 and 143 interrupted. HYDRA_FULL_ERROR=1 shows
tracebacks in place of messages.
"""

import functools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    CompactHydraException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from vae_lab.config import conf_dir, register
from vae_lab.errors import UsageError
from vae_lab.interruption import Interrupted, RunFailed
from vae_lab.runs import RunFolder, register_resolvers
from vae_lab.signatures import nearest

Task = Callable[[DictConfig], object]
E = TypeVar("E", bound=BaseException)
FULL_ERROR = "HYDRA_FULL_ERROR"
MESSAGE_LINES = 4
MISMATCH = (
    r"Value '(.*)' of type '(.*)' (?:could not be converted to|is incompatible with type hint) '?(.*?)'?$"
)
SPOKEN_TYPES = {
    **{"Integer": "an integer", "Float": "a number", "Boolean": "true or false"},
    **{"int": "an integer", "float": "a number", "bool": "true or false", "str": "a text"},
}


def run_command(task: Task, config_name: str, config_path: str | None = None) -> None:
    """Compose the config `config_name` of conf/ from the command line and run the task on it, or on a sweep.

    Returns when all went well, else exits with 1, 2, 130 or 143 after a message on stderr.
    """
    directory = config_path or conf_dir()
    register()
    register_resolvers()
    # Hydra turns what a callback raises into a warning; this one's word is final.
    warnings.filterwarnings("error", message=rf"Callback {RunFolder.__name__}\b")
    command = _Command(task, directory)
    main = hydra.main(version_base="1.3", config_path=directory, config_name=config_name)(command.job())
    code = command.run(main)
    if code:
        sys.exit(code)


class _Command:
    """One command: its task, and the failures of its jobs."""

    def __init__(self, task: Task, directory: str) -> None:
        self.task, self.directory = task, directory
        self.users_choice = os.environ.get(FULL_ERROR)
        self.failures: list[Exception] = []
        self.codes: list[int] = []

    def run(self, main: Callable[[], object]) -> int:
        """Run Hydra's main to its end; the exit code."""
        try:
            with _environment(FULL_ERROR, "1"):  # so that Hydra leaves exceptions to us
                main()
        except KeyboardInterrupt as stop:
            interrupted = _find(stop, Interrupted)
            sys.stderr.write(f"{interrupted or 'interrupted'}\n")
            return interrupted.exit_code if interrupted else 130
        except Exception as error:
            if not any(error is failure for failure in self.failures):
                self._report(error, in_job=False)
        return max(self.codes, default=0)

    def job(self) -> Task:
        """The task as Hydra calls it: a failure is told at once, and in a sweep the other jobs go on."""

        @functools.wraps(self.task)
        def job(config: DictConfig) -> object:
            try:
                with _environment(FULL_ERROR, self.users_choice):  # the children of a job inherit the user's
                    return self.task(config)
            except Exception as error:
                if _find(error, Interrupted):
                    raise KeyboardInterrupt from error  # an Exception would only end this job of a sweep
                self._report(error, in_job=True)
                self.failures.append(error)
                if HydraConfig.get().mode is RunMode.MULTIRUN:
                    raise  # the sweeper must know
                return None  # Hydra would add lines of its own

        return job

    def _report(self, error: Exception, in_job: bool) -> None:
        wrong_request = explain(error, self.directory, in_job)
        failed_run = _find(error, RunFailed)
        message = wrong_request or (str(failed_run) if failed_run else None)
        if message is None or self.users_choice == "1":
            traceback.print_exception(error)
        else:
            sys.stderr.write(_layout(message, _job_name() if in_job else ""))
        self.codes.append(2 if wrong_request else 1)


def explain(error: BaseException, directory: str, in_job: bool = False) -> str | None:
    """What was wrong with the request, where, and what was expected; None if the request was not the cause.

    `directory` holds the configs. What a job raises is its own failure unless it is a UsageError, an error
    of the config, or a ValueError of a constructor; before a job, every unreadable or unwritable file counts.
    """
    usage = _find(error, UsageError)
    if usage:
        return str(usage)
    explained = _explain_hydra(error) or _explain_omegaconf(error, directory)
    if explained:
        return explained
    general = _find(error, CompactHydraException)
    if general and not isinstance(general, InstantiationException):
        return _unknown_group(str(general), directory) or _tidy(str(general))
    if not in_job and isinstance(error, HydraException | OSError | ValueError):
        return _tidy(str(error))
    return None


def _explain_hydra(error: BaseException) -> str | None:
    option = _find(error, MissingConfigException)
    if option and option.options:
        return _unknown_option(option)
    syntax = _find(error, OverrideParseException)
    if syntax:
        return f"{_not_understood(syntax)}\nexpected key=value; quote a value with other signs"
    built = _find(error, InstantiationException)
    if built and isinstance(built.__cause__, ValueError):
        where = re.search(r"full_key: (.+)", str(built))
        return f"{where[1]}: {built.__cause__}" if where else str(built.__cause__)
    return None


def _explain_omegaconf(error: BaseException, directory: str) -> str | None:
    cause = next((e for e in _chain(error) if isinstance(e, OmegaConfBaseException) and e.full_key), None)
    composed = _find(error, CompactHydraException)
    place = _place(composed)
    match cause:
        case ConfigAttributeError() | ConfigKeyError() if composed:
            return _unknown_key(cause, str(composed), directory, place)
        case MissingMandatoryValue():
            return f"{cause.full_key}: has no value\ngive one: {cause.full_key}=..."
        case InterpolationResolutionError():
            return _broken_reference(cause)
        case ValidationError():
            return f"{cause.full_key}: {_type_mismatch(cause)}{place}"
    return None


def _not_understood(error: OverrideParseException) -> str:
    reason = error.message.removeprefix(f"Error parsing override '{error.override}'\n").partition("\n")[0]
    at = f" ({reason})" if error.override not in reason else ""
    return f"{error.override}: not understood{at}"


def _unknown_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = list(error.options or ())
    near = nearest(option, options)
    found = f"{group}={option}: no such option{_place(error)}"
    return _with_names(found, near and f"{group}={near}", options)


def _unknown_group(message: str, directory: str) -> str | None:
    group = re.search(r"Could not override '(.+?)'", message)
    if group is None:
        return None
    groups = sorted(_groups(directory))
    return _with_names(message.splitlines()[0], nearest(group[1].partition("@")[0], groups), groups)


def _unknown_key(error: OmegaConfBaseException, composed: str, directory: str, place: str) -> str:
    typed = re.search(r"use \+(.+)", composed)
    full_key, key = str(error.full_key), str(error.key)
    parent = full_key.removesuffix(key).rstrip(".")
    node = error.parent_node
    names = [str(name) for name in node] if isinstance(node, DictConfig) else []
    if not parent:
        nested = "/" in key
        groups = {group for group in _groups(directory) if ("/" in group) == nested}
        names = sorted(groups if nested else {*names, *groups} - {"hydra"})
    near = nearest(key, names)
    root = node._get_root() if node is not None else None
    near_key = _join(parent, near) if near else _elsewhere(key, root)
    where = f"in {parent}" if parent else "at the root of the config"
    found = f"{typed[1] if typed else full_key}: there is no '{key}' {where}{place}"
    return _with_names(found, near_key, [name for name in names if not name.startswith("_")])


def _place(error: BaseException | None) -> str:
    """The file that Hydra names, unless it is the primary config, whose name tells nothing."""
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
    near = nearest(missing[1], _dotted_keys(root)) if missing else None
    return _with_names(f"{error.full_key}: {message}", near and f"${{{near}}}", ())


def _type_mismatch(error: OmegaConfBaseException) -> str:
    message = str(error).splitlines()[0]
    parts = re.match(MISMATCH, message)
    if parts is None:
        return message
    value, found, expected = parts.groups()
    names = [name for name in re.findall(r"\w+", expected) if name not in ("Optional", "Union")]
    spoken = " or ".join(SPOKEN_TYPES.get(name, name) for name in names)
    return f"found '{value}' ({found}), expected {spoken}"


def _groups(directory: str) -> set[str]:
    root = Path(directory)
    return {file.parent.relative_to(root).as_posix() for file in root.rglob("*.yaml")} - {"."}


def _elsewhere(name: str, root: Any) -> str | None:
    """The shortest full key that ends in a name given without its parents."""
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


def _layout(message: str, job: str) -> str:
    return "\n  ".join(f"error: {job}{message}".splitlines()) + "\n"


def _job_name() -> str:
    """Which job of a sweep fails; nothing where there is one run."""
    config = HydraConfig.get()
    if config.mode is not RunMode.MULTIRUN:
        return ""
    return f"job {config.job.num} ({' '.join(config.overrides.task)}): "


def _find(error: BaseException, kind: type[E]) -> E | None:
    return next((link for link in _chain(error) if isinstance(link, kind)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__  # suppressed or not: OmegaConf suppresses all of them


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    before = os.environ.get(name)
    _set_environment(name, value)
    try:
        yield
    finally:
        _set_environment(name, before)


def _set_environment(name: str, value: str | None) -> None:
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
