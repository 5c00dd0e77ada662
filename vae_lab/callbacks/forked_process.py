"""A forked worker process: start, isolation from its parent, idle priority, and the transfer of its result.

It dies with its parent, and handles no signal that training handles.
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

HURRY = getattr(signal, "SIGUSR1", signal.SIGTERM)  # Windows has no SIGUSR1, and does not fork
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before a fork: the loader holds a lock


class JobResult(NamedTuple):
    """What a worker process returns when it ends."""

    values: list[Any]
    warnings: list[tuple[str, type[Warning], str, int]]
    failure: str | None  # a traceback


class ForkedProcess(NamedTuple):
    """A worker process and the file that receives its JobResult."""

    name: str
    pid: int
    sent: IO[bytes]


def reason_not_to_fork(device: torch.device, world_size: int) -> str | None:
    """Why worker processes cannot be forked; None if they can."""
    if sys.platform != "linux":
        return f"{sys.platform} does not fork safely"
    if device.type != "cpu":
        return f"a forked process cannot use the {device.type} device"
    if world_size > 1:
        return f"{world_size} processes train together"
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        return "SIGCHLD is ignored here, so the exit status of a worker process would be lost"
    return None


def fork(name: str, work: Job, idle: bool) -> ForkedProcess:
    """Start the work in a worker process; idle: at idle priority until it receives HURRY. Raises OSError."""
    sent, parent = tempfile.TemporaryFile(), os.getpid()  # noqa: SIM115 - the parent reads it after the worker ends
    # Training's handlers would run in the worker if a signal came before it has set its own.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {HURRY, signal.SIGINT, signal.SIGTERM})
    try:
        with warnings.catch_warnings():
            # Python warns that another thread (TensorBoard's, the progress bar's) may hold a lock the worker waits for.
            # The worker takes none of these: it logs and prints nothing, and exits without clean-up.
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _run_in_child(work, sent, parent, idle)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return ForkedProcess(name, pid, sent)


def exit_status(copy: ForkedProcess) -> int | None:
    """0, an exit code, or minus a signal number; None while the process runs."""
    pid, status = os.waitpid(copy.pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def _run_in_child(work: Job, sent: IO[bytes], parent: int, idle: bool) -> NoReturn:
    """Run the job and `_exit`: never return into training's code, nor flush the parent's buffers."""
    code = 1
    try:
        _detach_from_parent(parent)
        code = _run_at_idle_priority(work, sent) if idle else _run_job(work, sent)
    finally:
        os._exit(code)


def _detach_from_parent(parent: int) -> None:
    """Die with the parent; leave signals, streams and threads to it."""
    _die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    torch.set_num_threads(1)  # before any torch call: OpenMP's other threads do not survive a fork
    gc.freeze()  # a collection writes to every object and so copies every page: a third of a picture's time
    logging.disable()
    sys.stdout = sys.stderr = io.StringIO()


def _die_with_parent(parent: int) -> None:
    assert LIBC is not None
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent ended before prctl took effect


def _run_at_idle_priority(work: Job, sent: IO[bytes]) -> int:
    """Run the work in a child at idle priority, or here once HURRY is received. Return the exit code."""
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    pid = os.fork()
    if pid == 0:
        _die_with_parent(parent)
        _set_idle_priority()
        os._exit(_run_job(work, sent))
    hurried, done, status = False, 0, 0
    while not (done or hurried):
        hurried = signal.sigwait({HURRY, signal.SIGCHLD}) == HURRY  # SIGCHLD is also sent when the child is stopped
        done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return _run_job(work, sent)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        os.kill(parent, -code)  # killed by a signal: end the same way, so that the parent sees it
    return code


def _set_idle_priority() -> None:
    """SCHED_IDLE rather than nice: a training thread that waits for its turn delays the others at every step."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # a sandbox may forbid SCHED_IDLE
        os.nice(19)


def _run_job(work: Job, sent: IO[bytes]) -> int:
    """Run the work and pickle its JobResult into the file. Return exit code 0."""
    try:
        result = pickle.dumps(_job_result(work))
    except Exception:  # the values cannot be pickled
        result = pickle.dumps(JobResult([], [], traceback.format_exc()))
    sent.seek(0)
    sent.truncate()
    sent.write(result)
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
    recorded = [(str(warning.message), warning.category, warning.filename, warning.lineno) for warning in caught]
    return JobResult(values, recorded, failure)
