"""How a run ends before its time: a signal is noted at once and read where stopping is safe."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

# Slurm's --signal=USR1@60 comes a minute before the time is up; Windows has no such signal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


class Interrupted(Exception):  # noqa: N818 - a request that is granted, not an error
    """A run stopped because a signal asked for it; a command exits with `exit_code`: 130 after Ctrl-C, else 143."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + (signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)


class ForcedInterrupt(BaseException):
    """A second Ctrl-C: nothing more is done or saved. No KeyboardInterrupt, which Lightning makes an exit code 1."""

    exit_code = 128 + signal.SIGINT

    def __init__(self) -> None:
        super().__init__("interrupted by a second SIGINT: nothing was saved since the last checkpoint")


class StopSignals:
    """While entered, SIGINT, SIGTERM and SIGUSR1 stop the run.

    At first each of them raises Interrupted where it finds the program: nothing is there yet that could be lost. From
    `defer_to_safe_points` on they only set `requested`, which is read where stopping is safe; a second Ctrl-C raises
    ForcedInterrupt. Python takes handlers in the main thread alone: entered elsewhere, signals stay as they were.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._at_once = True
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._previous = self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def install(self) -> dict[signal.Signals, Any]:
        """Take the signals (again, from a library that took them meanwhile); the handlers that had them."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {signum: signal.signal(signum, self._note) for signum in SIGNALS}

    def defer_to_safe_points(self) -> None:
        """From now on something can be lost."""
        self._at_once = False

    def raise_if_requested(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self.requested is not None and signum == signal.SIGINT:
            raise ForcedInterrupt
        self.requested = signum
        if self._at_once:
            raise Interrupted(signum)
        if signum == signal.SIGINT:  # not through sys.stderr, in the midst of whose writing this may come
            os.write(2, b"\nstopping as soon as everything is saved; Ctrl-C again stops at once\n")


@contextmanager
def defer_sigint() -> Iterator[None]:
    """A Ctrl-C that comes within is answered afterwards: for a file that is being written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, _: came.append(signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    for signum in came[:1]:
        signal.raise_signal(signum)
