"""The one exception that means: the request was wrong, and here is what to do about it; and what caused another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class UsageError(ValueError):
    """A wrong request (a key, a file, a folder): what was found, where, what was expected, what to do.

    A command prints it without a traceback and exits with code 2.
    """


def find_cause(error: BaseException, kind: type[E]) -> E | None:
    """The first exception of this kind among an error and what caused it."""
    return next((link for link in cause_chain(error) if isinstance(link, kind)), None)


def cause_chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, and so on."""
    seen: list[BaseException] = []
    while error is not None and not any(error is link for link in seen):  # raised again, one may be its own cause
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__  # suppressed or not: OmegaConf suppresses all of them


class RunFailed(RuntimeError):  # noqa: N818 - named for what it says
    """A run that cannot go on (a loss that is not finite): the message says all, exit code 1."""
