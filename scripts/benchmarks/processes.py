"""Whole processes: how long they take, and how much memory at most."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.benchmarks.workers import WorkerFailed, environment

TRAIN = [sys.executable, "-m", "vae_lab.train"]
SAMPLE_SECONDS = 0.02
MIB = 2**20


@contextmanager
def started(command: Sequence[str], folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in that folder, its stderr kept for the message of WorkerFailed; waiting is left to the caller."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        if process.returncode:
            errors.seek(0)
            text = errors.read()[-2000:].decode(errors="replace")
            raise WorkerFailed(f"{' '.join(command[1:4])} ended with {process.returncode}\n{text}")


def seconds(command: Sequence[str], folder: str) -> float:
    """Wall time of a process."""
    start = time.perf_counter()
    with started(command, folder) as process:
        process.wait()
    return time.perf_counter() - start


def peak_resident(command: Sequence[str], folder: str) -> float:
    """The most memory that a process and those it waited for held, bytes."""
    with started(command, folder) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return float(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def peak_anonymous(command: Sequence[str], folder: str) -> float:
    """The most anonymous memory of a process and its children together, bytes: a mapped file's pages are not in it."""
    peak = 0
    with started(command, folder) as process:
        while process.poll() is None:
            peak = max(peak, sum(anonymous(pid) for pid in family(process.pid)))
            time.sleep(SAMPLE_SECONDS)
    return float(peak)


def family(pid: int) -> Iterator[int]:
    """A process, its children, and theirs."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # it ended
            continue
        for child in children:
            yield from family(int(child))


def running(pid: int) -> bool:
    """Whether a process is still at work, rather than ended and not yet waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def anonymous(pid: int) -> int:
    """Anonymous memory of one process now, bytes; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def paired(
    ours: Sequence[str],
    theirs: Sequence[str],
    repeats: int,
    measure: Callable[[Sequence[str], str], float] = seconds,
    warm_up: int = 1,
) -> tuple[list[float], list[float]]:
    """Both commands in turn, after `warm_up` of each that do not count."""
    with tempfile.TemporaryDirectory() as folder:
        found = [(measure(ours, folder), measure(theirs, folder)) for _ in range(repeats + warm_up)]
    first, second = zip(*found[warm_up:], strict=True)
    return list(first), list(second)
