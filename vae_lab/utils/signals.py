"""Interrupting a run: a signal sets a flag that is read where stopping is safe."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Self

# Slurm's --signal=USR1@60 sends SIGUSR1 a minute before the time limit, a terminal that closes SIGHUP. Windows has
# neither.
POSIX_SIGNALS = (signal.SIGUSR1, signal.SIGHUP) if os.name == "posix" else ()
SIGNALS = (signal.SIGINT, signal.SIGTERM, *POSIX_SIGNALS)


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """A run was stopped by a signal; the command exits with `exit_code`: 130 for SIGINT, else 143."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + (signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)


class ForcedInterrupt(BaseException):
    """A second Ctrl-C: stop without saving. Not a KeyboardInterrupt, which Lightning turns into exit code 1."""

    exit_code = 128 + signal.SIGINT

    def __init__(self) -> None:
        super().__init__("interrupted by a second SIGINT: nothing was saved since the last checkpoint")


class StopSignals:
    """A context in which SIGINT, SIGTERM, SIGUSR1 and, unless it is ignored (nohup), SIGHUP stop the run.

    At first each of them raises Interrupted at once, since nothing can be lost yet. After `defer_to_safe_points` they
    only set `requested`, which is read where stopping is safe; a second Ctrl-C raises ForcedInterrupt.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._at_once = True
        self._requested_at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._previous = self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def install(self) -> dict[signal.Signals, Any]:
        """Install the handlers (again, if a library replaced them); returns the previous ones.

        Only the main thread may: a run in another one is not stopped by signals.
        """
        if threading.current_thread() is not threading.main_thread():
            return {}
        ignored = {signum for signum in POSIX_SIGNALS if signal.getsignal(signum) is signal.SIG_IGN}
        return {signum: signal.signal(signum, self._handle) for signum in SIGNALS if signum not in ignored}

    def defer_to_safe_points(self) -> None:
        """Stop only where `requested` is read: from now on progress could be lost."""
        self._at_once = False

    def raise_if_requested(self) -> None:
        if self.requested is not None:
            raise Interrupted(self.requested)

    @property
    def seconds_since(self) -> float:
        """Seconds since the first signal; 0 without one."""
        return 0.0 if self.requested is None else time.monotonic() - self._requested_at

    def _handle(self, signum: int, _: FrameType | None) -> None:
        if self.requested is not None and signum == signal.SIGINT:
            raise ForcedInterrupt
        if self.requested is None:
            self._requested_at = time.monotonic()
        self.requested = signum
        if self._at_once:
            raise Interrupted(signum)
        if signum == signal.SIGINT:  # not sys.stderr: the signal may interrupt a write to it
            with suppress(OSError):  # stderr is closed
                os.write(2, b"\nstopping as soon as everything is saved; Ctrl-C again stops at once\n")


@contextmanager
def defer_sigint() -> Iterator[None]:
    """Defer a Ctrl-C to the end of the context: the second of two in a row often comes as summary.json is written."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda signum, _: received.append(signum))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    for signum in received[:1]:
        signal.raise_signal(signum)
