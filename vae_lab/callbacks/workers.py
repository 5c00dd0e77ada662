"""Jobs on a snapshot of the process while training continues: forked worker processes, as in Redis' background save.

A worker has the memory of the moment of its fork; a page is copied only when training writes to it. It returns values;
files, loggers and the progress bar stay with the parent. A child of the worker runs the job at idle priority; on a
machine without idle time the worker runs it itself, once the parent has waited long enough.
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

MAX_PROCESSES = 4  # each holds the pages that training has written since the fork, and what it computes
POLL_SECONDS = 0.005  # between two checks of a worker that is waited for
MAX_IDLE_WAIT = 2.0  # seconds to wait for idle time before HURRY is sent


class BackgroundError(RuntimeError):
    """A job failed in a worker process; the message ends with its traceback."""


@dataclass
class InProcessWorkers(Generic[T]):
    """Runs each job in this process when it is started; skips jobs once `stop_requested()`."""

    deliver: Callable[[T], None]
    stop_requested: Callable[[], bool] = lambda: False
    skipped: list[str] = field(default_factory=list)  # names of the jobs that were not completed

    def start(self, name: str, work: Job[T], *, urgent: bool = False) -> None:
        """Run the job and deliver its values."""
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
        return False

    def poll(self) -> None: ...

    drain = stop = poll

    def finish(self, seconds: float) -> None: ...


@dataclass
class ForkedWorkers(Generic[T]):
    """Forks a worker process for each job, at most `MAX_PROCESSES` at a time; never waits once `stop_requested()`.

    Values are delivered in the order in which the jobs were started, and only by the methods below.
    """

    deliver: Callable[[T], None]
    stop_requested: Callable[[], bool] = lambda: False
    skipped: list[str] = field(default_factory=list)  # names of the jobs that were not completed
    _copies: deque[ForkedProcess] = field(default_factory=deque)

    def start(self, name: str, work: Job[T], *, urgent: bool = False) -> None:
        """Fork a worker; wait for the oldest if there are too many. urgent: no idle priority, training has stopped."""
        self._wait(MAX_PROCESSES - 1)
        try:
            self._copies.append(fork(name, work, idle=not urgent))
        except OSError:  # out of memory or processes: run the job in this process
            self.drain()
            InProcessWorkers(self.deliver, self.stop_requested).start(name, work)

    @property
    def busy(self) -> bool:
        """Whether a job is running or not yet delivered."""
        return bool(self._copies)

    def poll(self) -> None:
        """Deliver finished jobs; one system call while a job runs. Raises BackgroundError if a job failed."""
        while self._copies:
            status = exit_status(self._copies[0])
            if status is None:
                return
            self._receive(self._copies.popleft(), status)

    def drain(self) -> None:
        """Wait for all jobs and deliver them."""
        self._wait(0)

    def finish(self, seconds: float) -> None:
        """Deliver the jobs that finish within so many seconds and kill the rest, when training is stopped early."""
        try:
            self._wait(0, seconds)
        except BackgroundError as error:
            log.warning("warning: %s", error)  # must not hide the reason why training stops
        finally:
            if self._copies:
                names = ", ".join(dict.fromkeys(copy.name for copy in self._copies))
                log.warning("warning: unfinished when training was stopped, and skipped: %s", names)
                self.skipped += [copy.name for copy in self._copies]
            self.stop()

    def stop(self) -> None:
        """Kill all workers: they hold nothing but memory."""
        for copy in self._copies:
            os.kill(copy.pid, signal.SIGKILL)
        while self._copies:
            copy = self._copies.popleft()
            os.waitpid(copy.pid, 0)
            copy.sent.close()

    def _wait(self, most: int, seconds: float | None = None) -> None:
        """Wait until at most `most` jobs are running, for at most `seconds`; if None, until `stop_requested()`."""
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
        """Tell all workers to stop waiting for idle time and run their job themselves, from the beginning."""
        for copy in self._copies:
            os.kill(copy.pid, HURRY)

    def _receive(self, copy: ForkedProcess, status: int) -> None:
        with copy.sent as sent:
            if status != 0:
                self.skipped.append(copy.name)
                how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"
                warnings.warn(f"{copy.name}: the worker process {how}, its results are lost", stacklevel=2)
                return
            sent.seek(0)
            outcome: JobResult = pickle.load(sent)  # written by our own worker
        for message, category, filename, line in outcome.warnings:
            warnings.warn_explicit(message, category, filename, line)
        for value in outcome.values:
            self.deliver(value)
        if outcome.failure is not None:
            raise BackgroundError(f"{copy.name} failed in the background:\n{outcome.failure}")


Workers = InProcessWorkers[T] | ForkedWorkers[T]
