"""How a run ends before its time: a signal is noted at once and read where stopping is safe."""

import signal
import threading
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 - a request that is granted, not an error
    """A run stopped because a signal asked for it; a command exits with `exit_code`, 128 + the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.exit_code = 128 + signum


class RunFailed(RuntimeError):  # noqa: N818 - named for what it says
    """A run that cannot go on (a loss that is not finite): the message says all, exit code 1."""


class Interruption:
    """While entered, SIGINT and SIGTERM only set `requested`; a second Ctrl-C is a KeyboardInterrupt at once.

    Python takes handlers in the main thread alone: entered in another thread, signals stay as they were.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
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

    def raise_if_requested(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def _note(self, signum: int, _: FrameType | None) -> None:
        if self.requested is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signum
