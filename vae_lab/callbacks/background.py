"""Work on the state of one moment while training goes on: a forked copy of the process does it, as Redis saves.

The copy has the memory of that moment, page by page copied only where training writes. It returns values; files,
loggers and the progress bar stay with the process that trains.
"""

from __future__ import annotations

import ctypes
import gc
import io
import logging
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any, Generic, NamedTuple, NoReturn, TypeVar

import torch

T = TypeVar("T")
Work = Callable[[], Iterable[T]]

MOST_COPIES = 4  # each holds the pages that training has written since, and what it draws
PAUSE = 0.005  # seconds between two looks at a copy that is waited for
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before a fork: the loader has a lock


class BackgroundError(RuntimeError):
    """Work in a copy of the process failed; the message ends with its traceback."""


@dataclass
class InProcess(Generic[T]):
    """Does each work as it is started, until `interrupted`."""

    deliver: Callable[[T], None]
    interrupted: Callable[[], bool] = lambda: False

    def start(self, name: str, work: Work[T], *, urgent: bool = False) -> None:
        """Do it and deliver what comes of it."""
        if self.interrupted():
            return
        for value in work():
            self.deliver(value)
            if self.interrupted():
                return

    def look(self) -> None:
        """Nothing is ever pending."""

    drain = stop = look


class Outcome(NamedTuple):
    """What a copy sends when it ends."""

    values: list[Any]
    warnings: list[tuple[str, type[Warning], str, int]]
    failure: str | None  # a traceback


class Copy(NamedTuple):
    """A forked process and the file that it leaves its outcome in."""

    name: str
    pid: int
    sent: IO[bytes]


@dataclass
class Background(Generic[T]):
    """Forks a copy of the process for each work, at most `MOST_COPIES` at a time; `interrupted` ends them.

    What comes of them is delivered in the order they were started in, by the methods below alone.
    """

    deliver: Callable[[T], None]
    interrupted: Callable[[], bool] = lambda: False
    _copies: deque[Copy] = field(default_factory=deque)

    def start(self, name: str, work: Work[T], *, urgent: bool = False) -> None:
        """Begin; wait for the oldest copy first where there are too many. `urgent`: training does not go on."""
        self._wait(MOST_COPIES - 1)
        if self.interrupted():
            return
        try:
            self._copies.append(_fork(name, work, idle=not urgent))
        except OSError:  # no memory to promise, or no process to have: what needs neither still works
            self.drain()
            InProcess(self.deliver, self.interrupted).start(name, work)

    def look(self) -> None:
        """Deliver what is done; a system call where one is at work. Raises BackgroundError where one failed."""
        while self._copies and not self._stopped():
            status = _exit_status(self._copies[0])
            if status is None:
                return
            self._receive(self._copies.popleft(), status)

    def drain(self) -> None:
        """Wait for all and deliver it."""
        self._wait(0)

    def stop(self) -> None:
        """Kill all: they hold nothing but memory."""
        for copy in self._copies:
            os.kill(copy.pid, signal.SIGKILL)
        while self._copies:
            copy = self._copies.popleft()
            os.waitpid(copy.pid, 0)
            copy.sent.close()

    def _wait(self, most: int) -> None:
        self.look()
        while len(self._copies) > most:
            time.sleep(PAUSE)
            self.look()

    def _stopped(self) -> bool:
        if self.interrupted():
            self.stop()
        return not self._copies

    def _receive(self, copy: Copy, status: int) -> None:
        with copy.sent as sent:
            if status != 0:
                how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"
                warnings.warn(f"{copy.name}: the process at work on it {how}, and its results are lost", stacklevel=2)
                return
            sent.seek(0)
            outcome: Outcome = pickle.load(sent)  # our own copy wrote it
        for message, category, filename, line in outcome.warnings:
            warnings.warn_explicit(message, category, filename, line)
        for value in outcome.values:
            self.deliver(value)
        if outcome.failure is not None:
            raise BackgroundError(f"{copy.name} failed in the background:\n{outcome.failure}")


Workers = InProcess[T] | Background[T]


def unfit_for_copies(device: torch.device, world_size: int) -> str | None:
    """Why the process cannot be forked to draw; None where it can."""
    if sys.platform != "linux":
        return f"{sys.platform} does not fork safely"
    if device.type != "cpu":
        return f"a copy of the process cannot use the {device.type} device"
    if world_size > 1:
        return f"{world_size} processes train together"
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        return "SIGCHLD is ignored here, so how a copy ended would not be known"
    return None


def _fork(name: str, work: Work[Any], idle: bool) -> Copy:
    sent, parent = tempfile.TemporaryFile(), os.getpid()  # noqa: SIM115 - the parent reads it when the copy has ended
    with warnings.catch_warnings():
        # Python warns that another thread (TensorBoard's, the progress bar's) may hold a lock that the copy waits
        # for. The copy takes none of theirs: it logs and prints nothing, and ends without cleaning up.
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _be_the_copy(work, sent, parent, idle)
    return Copy(name, pid, sent)


def _exit_status(copy: Copy) -> int | None:
    """0, minus a signal's number, or an exit code; None while it runs."""
    pid, status = os.waitpid(copy.pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _be_the_copy(work: Work[Any], sent: IO[bytes], parent: int, idle: bool) -> NoReturn:
    """Never returns into the code that training runs, nor flushes what the parent had buffered."""
    code = 1
    try:
        _leave_the_parent_alone(parent, idle)
        pickle.dump(_outcome(work), sent)
        sent.flush()
        code = 0
    finally:
        os._exit(code)


def _leave_the_parent_alone(parent: int, idle: bool) -> None:
    """Die with it, leave signals, its streams and its share of the processor to it."""
    assert LIBC is not None
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it had ended before it could be watched
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # first of all of torch's: OpenMP's other threads are not in the copy
    if idle:
        # Not by niceness: a thread of training that waits for its turn holds up the others, step by step.
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    gc.freeze()  # a collection would write to every object, which copies its page: a third of a drawing's time
    logging.disable()
    sys.stdout = sys.stderr = io.StringIO()


def _outcome(work: Work[Any]) -> Outcome:
    values: list[Any] = []
    failure = None
    with warnings.catch_warnings(record=True) as caught:
        try:
            values.extend(work())
        except Exception:
            failure = traceback.format_exc()
    told = [(str(warning.message), warning.category, warning.filename, warning.lineno) for warning in caught]
    return Outcome(values, told, failure)
