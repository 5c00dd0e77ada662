"""Exceptions for a wrong request and a failed run, and the causes of an exception."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class UsageError(ValueError):
    """A wrong request (a key, a file, a folder): what was found, where, what was expected, what to do.

    A command prints it without a traceback and exits with code 2.
    """


def find_cause(error: BaseException, kind: type[E]) -> E | None:
    """The first exception of this kind among an error and its causes."""
    return next((link for link in cause_chain(error) if isinstance(link, kind)), None)


def cause_chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause of its cause, and so on."""
    seen: list[BaseException] = []
    while error is not None and not any(error is link for link in seen):  # one raised again may be its own cause
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__  # even a suppressed one: OmegaConf suppresses all


class RunFailed(RuntimeError):  # noqa: N818 - named after the event
    """A run that cannot continue (e.g. a non-finite loss): reported without a traceback, exit code 1."""


def require_extra(extra: str, *modules: str, where: str = "") -> None:
    """UsageError, which names the extra of vae_lab to install, if a module is not there. where: what needs it."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            found = f"{where} needs {name}, which is not installed" if where else f"{name} is not installed"
            raise UsageError(f"{found}\npip install 'vae_lab[{extra}]'")
