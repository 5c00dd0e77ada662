"""Work on the state of one moment while training goes on: a forked copy of the process does it, as Redis saves.

The copy has the memory of that moment, page by page copied only where training writes. It returns values; files,
loggers and the progress bar stay with the process that trains. A copy of the copy does the work with the processor's
idle time alone; on a machine that has none, the copy does it itself once somebody has waited long enough.
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

log = logging.getLogger("vae_lab")
T = TypeVar("T")
Work = Callable[[], Iterable[T]]

MOST_COPIES = 4  # each holds the pages that training has written since, and what it draws
PAUSE = 0.005  # seconds between two looks at a copy that is waited for
PATIENCE = 2.0  # seconds to wait for idle time before a copy is hurried
HURRY = getattr(signal, "SIGUSR1", signal.SIGTERM)  # Windows has none, and no copies either
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before a fork: the loader has a lock


class BackgroundError(RuntimeError):
    """Work in a copy of the process failed; the message ends with its traceback."""


@dataclass
class InProcess(Generic[T]):
    """Does each work as it is started, until `interrupted`."""

    deliver: Callable[[T], None]
    interrupted: Callable[[], bool] = lambda: False
    lost: list[str] = field(default_factory=list)  # the names of works that were not done

    def start(self, name: str, work: Work[T], *, urgent: bool = False) -> None:
        """Do it and deliver what comes of it."""
        if self.interrupted():
            self.lost.append(name)
            return
        for value in work():
            self.deliver(value)
            if self.interrupted():
                self.lost.append(f"{name} (in part)")
                return

    @property
    def busy(self) -> bool:
        """Nothing is ever pending."""
        return False

    def look(self) -> None:
        """Nothing is ever pending."""

    drain = stop = look

    def finish(self, seconds: float) -> None:
        """Nothing is ever pending."""


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
    """Forks a copy of the process for each work, at most `MOST_COPIES` at a time; nobody waits once `interrupted`.

    What comes of them is delivered in the order they were started in, by the methods below alone.
    """

    deliver: Callable[[T], None]
    interrupted: Callable[[], bool] = lambda: False
    lost: list[str] = field(default_factory=list)  # the names of works that were not done
    _copies: deque[Copy] = field(default_factory=deque)

    def start(self, name: str, work: Work[T], *, urgent: bool = False) -> None:
        """Begin; wait for the oldest copy first where there are too many. `urgent`: training does not go on."""
        self._wait(MOST_COPIES - 1)
        try:
            self._copies.append(_fork(name, work, idle=not urgent))
        except OSError:  # no memory to promise, or no process to have: what needs neither still works
            self.drain()
            InProcess(self.deliver, self.interrupted).start(name, work)

    @property
    def busy(self) -> bool:
        """Whether anything was started that is not delivered yet."""
        return bool(self._copies)

    def look(self) -> None:
        """Deliver what is done; a system call where one is at work. Raises BackgroundError where one failed."""
        while self._copies:
            status = _exit_status(self._copies[0])
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
                self.lost += [copy.name for copy in self._copies]
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
        self.look()
        started, hurried = time.monotonic(), False
        while len(self._copies) > most:
            waited = time.monotonic() - started
            if waited > seconds if seconds is not None else self.interrupted():
                return
            if waited > PATIENCE and not hurried and (seconds is None or seconds > 2 * PATIENCE):
                self._hurry()
                hurried = True
            time.sleep(PAUSE)
            self.look()

    def _hurry(self) -> None:
        """Let none wait for idle time any longer; one that did not get any begins anew."""
        for copy in self._copies:
            os.kill(copy.pid, HURRY)

    def _receive(self, copy: Copy, status: int) -> None:
        with copy.sent as sent:
            if status != 0:
                self.lost.append(copy.name)
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
    # A signal between the fork and the copy's own settings would be answered by what training does.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {HURRY, signal.SIGINT, signal.SIGTERM})
    try:
        with warnings.catch_warnings():
            # Python warns that another thread (TensorBoard's, the progress bar's) may hold a lock that the copy waits
            # for. The copy takes none of theirs: it logs and prints nothing, and ends without cleaning up.
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _be_the_copy(work, sent, parent, idle)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Copy(name, pid, sent)


def _exit_status(copy: Copy) -> int | None:
    """0, minus a signal's number, or an exit code; None while it runs."""
    pid, status = os.waitpid(copy.pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _be_the_copy(work: Work[Any], sent: IO[bytes], parent: int, idle: bool) -> NoReturn:
    """Never returns into the code that training runs, nor flushes what the parent had buffered."""
    code = 1
    try:
        _leave_the_parent_alone(parent)
        code = _in_idle_time(work, sent) if idle else _do(work, sent)
    finally:
        os._exit(code)


def _leave_the_parent_alone(parent: int) -> None:
    """Die with it; leave signals, its streams and its threads to it."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    torch.set_num_threads(1)  # first of all of torch's: OpenMP's other threads are not in the copy
    gc.freeze()  # a collection would write to every object, which copies its page: a third of a drawing's time
    logging.disable()
    sys.stdout = sys.stderr = io.StringIO()


def _die_with(parent: int) -> None:
    assert LIBC is not None
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it had ended before it could be watched


def _in_idle_time(work: Work[Any], sent: IO[bytes]) -> int:
    """Have a copy of this one do the work with idle time alone; do it here when hurried. The exit code."""
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    pid = os.fork()
    if pid == 0:
        _die_with(parent)
        _take_idle_time_only()
        os._exit(_do(work, sent))
    hurried, done, status = False, 0, 0
    while not (done or hurried):
        hurried = signal.sigwait({HURRY, signal.SIGCHLD}) == HURRY  # SIGCHLD also comes when the child is stopped
        done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return _do(work, sent)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        os.kill(parent, -code)  # ended by a signal: this copy tells by ending the same way
    return code


def _take_idle_time_only() -> None:
    """Not by niceness: a thread of training that waits for its turn holds up the others, step by step."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # a sandbox may refuse it
        os.nice(19)


def _do(work: Work[Any], sent: IO[bytes]) -> int:
    """Do it and leave its outcome in the file; the exit code."""
    try:
        told = pickle.dumps(_outcome(work))
    except Exception:  # what came of it cannot be sent
        told = pickle.dumps(Outcome([], [], traceback.format_exc()))
    sent.seek(0)
    sent.truncate()
    sent.write(told)
    sent.flush()
    return 0


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
