"""Work on the state of one moment while training goes on: a forked copy of the process does it, as Redis saves.

The copy has the memory of that moment, page by page copied only where training writes. It returns values; files,
loggers and the progress bar stay with the process that trains. A copy of the copy does the work with the processor's
idle time alone; on a machine that has none, the copy does it itself once somebody has waited long enough.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vae_lab.callbacks.forked_process import HURRY, ForkedProcess, JobResult, exit_status, fork

log = logging.getLogger("vae_lab")
T = TypeVar("T")
Job = Callable[[], Iterable[T]]

MAX_PROCESSES = 4  # each holds the pages that training has written since, and what it draws
POLL_SECONDS = 0.005  # seconds between two looks at a copy that is waited for
MAX_IDLE_WAIT = 2.0  # seconds to wait for idle time before a copy is hurried


class BackgroundError(RuntimeError):
    """Work in a copy of the process failed; the message ends with its traceback."""


@dataclass
class InProcessWorkers(Generic[T]):
    """Does each work as it is started, until `interrupted`."""

    deliver: Callable[[T], None]
    stop_requested: Callable[[], bool] = lambda: False
    skipped: list[str] = field(default_factory=list)  # the names of works that were not done

    def start(self, name: str, work: Job[T], *, urgent: bool = False) -> None:
        """Do it and deliver what comes of it."""
        if self.stop_requested():
            self.skipped.append(name)
            return
        for value in work():
            self.deliver(value)
            if self.stop_requested():
                self.skipped.append(f"{name} (in part)")
                return

    @property
    def busy(self) -> bool:
        """Nothing is ever pending."""
        return False

    def poll(self) -> None:
        """Nothing is ever pending."""

    drain = stop = poll

    def finish(self, seconds: float) -> None:
        """Nothing is ever pending."""


@dataclass
class ForkedWorkers(Generic[T]):
    """Forks a copy of the process for each work, at most `MAX_PROCESSES` at a time; nobody waits once `interrupted`.

    What comes of them is delivered in the order they were started in, by the methods below alone.
    """

    deliver: Callable[[T], None]
    stop_requested: Callable[[], bool] = lambda: False
    skipped: list[str] = field(default_factory=list)  # the names of works that were not done
    _copies: deque[ForkedProcess] = field(default_factory=deque)

    def start(self, name: str, work: Job[T], *, urgent: bool = False) -> None:
        """Begin; wait for the oldest copy first where there are too many. `urgent`: training does not go on."""
        self._wait(MAX_PROCESSES - 1)
        try:
            self._copies.append(fork(name, work, idle=not urgent))
        except OSError:  # no memory to promise, or no process to have: what needs neither still works
            self.drain()
            InProcessWorkers(self.deliver, self.stop_requested).start(name, work)

    @property
    def busy(self) -> bool:
        """Whether anything was started that is not delivered yet."""
        return bool(self._copies)

    def poll(self) -> None:
        """Deliver what is done; a system call where one is at work. Raises BackgroundError where one failed."""
        while self._copies:
            status = exit_status(self._copies[0])
            if status is None:
                return
            self._receive(self._copies.popleft(), status)

    def drain(self) -> None:
        """Wait for all and deliver it."""
        self._wait(0)

    def finish(self, seconds: float) -> None:
        """Deliver what is done within so many seconds, then kill the others: training ends before its time."""
        try:
            self._wait(0, seconds)
        except BackgroundError as error:
            log.warning("warning: %s", error)  # why training ends is another matter
        finally:
            if self._copies:
                names = ", ".join(dict.fromkeys(copy.name for copy in self._copies))
                log.warning("warning: not done when training was stopped, and left out: %s", names)
                self.skipped += [copy.name for copy in self._copies]
            self.stop()

    def stop(self) -> None:
        """Kill all: they hold nothing but memory."""
        for copy in self._copies:
            os.kill(copy.pid, signal.SIGKILL)
        while self._copies:
            copy = self._copies.popleft()
            os.waitpid(copy.pid, 0)
            copy.sent.close()

    def _wait(self, most: int, seconds: float | None = None) -> None:
        """Until no more are at work, at most so long; without a limit, until `interrupted`."""
        self.poll()
        started, hurried = time.monotonic(), False
        while len(self._copies) > most:
            waited = time.monotonic() - started
            if waited > seconds if seconds is not None else self.stop_requested():
                return
            if waited > MAX_IDLE_WAIT and not hurried and (seconds is None or seconds > 2 * MAX_IDLE_WAIT):
                self._hurry()
                hurried = True
            time.sleep(POLL_SECONDS)
            self.poll()

    def _hurry(self) -> None:
        """Let none wait for idle time any longer; one that did not get any begins anew."""
        for copy in self._copies:
            os.kill(copy.pid, HURRY)

    def _receive(self, copy: ForkedProcess, status: int) -> None:
        with copy.sent as sent:
            if status != 0:
                self.skipped.append(copy.name)
                how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"
                warnings.warn(f"{copy.name}: the process at work on it {how}, and its results are lost", stacklevel=2)
                return
            sent.seek(0)
            outcome: JobResult = pickle.load(sent)  # our own copy wrote it
        for message, category, filename, line in outcome.warnings:
            warnings.warn_explicit(message, category, filename, line)
        for value in outcome.values:
            self.deliver(value)
        if outcome.failure is not None:
            raise BackgroundError(f"{copy.name} failed in the background:\n{outcome.failure}")


Workers = InProcessWorkers[T] | ForkedWorkers[T]
