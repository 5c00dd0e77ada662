"""A forked copy of the process: how it is made, leaves its parent alone, waits for idle time and tells what it found.

It dies with its parent, and answers no signal that training answers.
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
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import IO, Any, NamedTuple, NoReturn

import torch

Job = Callable[[], Iterable[Any]]

HURRY = getattr(signal, "SIGUSR1", signal.SIGTERM)  # Windows has none, and no copies either
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before a fork: the loader has a lock


class JobResult(NamedTuple):
    """What a copy sends when it ends."""

    values: list[Any]
    warnings: list[tuple[str, type[Warning], str, int]]
    failure: str | None  # a traceback


class ForkedProcess(NamedTuple):
    """A forked process and the file that it leaves its outcome in."""

    name: str
    pid: int
    sent: IO[bytes]


def reason_not_to_fork(device: torch.device, world_size: int) -> str | None:
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


def fork(name: str, work: Job, idle: bool) -> ForkedProcess:
    """Start the work in a copy; idle: with the processor's idle time alone, until it is sent HURRY. Raises OSError."""
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
            _run_in_child(work, sent, parent, idle)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return ForkedProcess(name, pid, sent)


def exit_status(copy: ForkedProcess) -> int | None:
    """0, minus a signal's number, or an exit code; None while it runs."""
    pid, status = os.waitpid(copy.pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _run_in_child(work: Job, sent: IO[bytes], parent: int, idle: bool) -> NoReturn:
    """Never returns into the code that training runs, nor flushes what the parent had buffered."""
    code = 1
    try:
        _detach_from_parent(parent)
        code = _run_at_idle_priority(work, sent) if idle else _run_job(work, sent)
    finally:
        os._exit(code)


def _detach_from_parent(parent: int) -> None:
    """Die with it; leave signals, its streams and its threads to it."""
    _die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    torch.set_num_threads(1)  # first of all of torch's: OpenMP's other threads are not in the copy
    gc.freeze()  # a collection would write to every object, which copies its page: a third of a drawing's time
    logging.disable()
    sys.stdout = sys.stderr = io.StringIO()


def _die_with_parent(parent: int) -> None:
    assert LIBC is not None
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it had ended before it could be watched


def _run_at_idle_priority(work: Job, sent: IO[bytes]) -> int:
    """Have a copy of this one do the work with idle time alone; do it here when hurried. The exit code."""
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    pid = os.fork()
    if pid == 0:
        _die_with_parent(parent)
        _set_idle_priority()
        os._exit(_run_job(work, sent))
    hurried, done, status = False, 0, 0
    while not (done or hurried):
        hurried = signal.sigwait({HURRY, signal.SIGCHLD}) == HURRY  # SIGCHLD also comes when the child is stopped
        done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return _run_job(work, sent)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        os.kill(parent, -code)  # ended by a signal: this copy tells by ending the same way
    return code


def _set_idle_priority() -> None:
    """Not by niceness: a thread of training that waits for its turn holds up the others, step by step."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # a sandbox may refuse it
        os.nice(19)


def _run_job(work: Job, sent: IO[bytes]) -> int:
    """Do it and leave its outcome in the file; the exit code."""
    try:
        told = pickle.dumps(_job_result(work))
    except Exception:  # what came of it cannot be sent
        told = pickle.dumps(JobResult([], [], traceback.format_exc()))
    sent.seek(0)
    sent.truncate()
    sent.write(told)
    sent.flush()
    return 0


def _job_result(work: Job) -> JobResult:
    values: list[Any] = []
    failure = None
    with warnings.catch_warnings(record=True) as caught:
        try:
            values.extend(work())
        except Exception:
            failure = traceback.format_exc()
    told = [(str(warning.message), warning.category, warning.filename, warning.lineno) for warning in caught]
    return JobResult(values, told, failure)
