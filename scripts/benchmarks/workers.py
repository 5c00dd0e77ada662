"""Processes that take turns: each sets one side up, runs one repeat whenever it is asked, and is idle in between.

A side is a function `side(turn, **options)` of a module of this package, named as `module:function`. It calls `turn()`
once it is set up, and then `turn(value)` with what each repeat gave; a call returns when the next repeat is wanted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Self, TextIO

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "benchmark.py"


class WorkerFailed(RuntimeError):  # noqa: N818 (named for what it says)
    """A process ended before it answered; the message is the end of what it wrote."""


class Side(NamedTuple):
    """What a worker runs."""

    name: str  # module:function
    options: dict[str, Any]


def side(name: str, **options: Any) -> Side:
    """A side and its options, which have to be JSON."""
    return Side(name, options)


def environment() -> dict[str, str]:
    """A child's: this vae_lab rather than an installed one, and folders that are found from any other."""
    folders = {"VAE_LAB_DATA": str(data_root())}
    if cache := os.environ.get("VAE_LAB_CACHE"):
        folders["VAE_LAB_CACHE"] = str(Path(cache).expanduser().absolute())
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **folders, "PYTHONPATH": os.pathsep.join(paths)}


def data_root() -> Path:
    """Where the data sets are."""
    return Path(os.environ.get("VAE_LAB_DATA", "data")).expanduser().absolute()


def has_mnist() -> bool:
    """Whether MNIST is there, so that nothing has to be downloaded."""
    return any((data_root() / "MNIST" / "raw").glob("train-images-idx3-ubyte*"))


def has_pokemon() -> bool:
    """Whether the pictures of Pokemon are there."""
    return any((data_root() / "pokemon").glob("*.png"))


class Terminal:
    """The terminal that a worker believes to write to, so that its progress bar is drawn; its last words are kept."""

    def __init__(self) -> None:
        ours, self.theirs = os.openpty() if hasattr(os, "openpty") else os.pipe()
        self.last: deque[bytes] = deque(maxlen=64)
        threading.Thread(target=self._drain, args=[ours], daemon=True).start()

    def _drain(self, ours: int) -> None:
        with suppress(OSError), os.fdopen(ours, "rb", buffering=0) as screen:  # OSError: the other end is closed
            while text := screen.read(4096):
                self.last.append(text)

    def text(self) -> str:
        """The end of what was written."""
        return b"".join(self.last).decode(errors="replace")[-2000:].replace("\r\n", "\n")


class Worker:
    """One side in a process and a folder of its own; a context, which ends it."""

    def __init__(self, what: Side) -> None:
        self.name, self.terminal = what.name, Terminal()
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            command_of(what),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.terminal.theirs,
            cwd=self.folder.name,
            env=environment(),
            text=True,
            start_new_session=True,  # a group of its own, which ends with it
        )
        os.close(self.terminal.theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        self.folder.cleanup()

    def ready(self) -> Any:
        """Wait until it is set up; what it said then."""
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        if not answer:
            raise WorkerFailed(f"{self.name} ended with {self.process.wait()}\n{self.terminal.text()}")
        return json.loads(answer)

    def repeat(self) -> Any:
        """Run one repeat; what it gave."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        return self.ready()


def command_of(what: Side) -> list[str]:
    """The command of a worker."""
    return [sys.executable, str(SCRIPT), "--worker", what.name, json.dumps(what.options)]


def in_turn(sides: Sequence[Side], repeats: int) -> list[list[float]]:
    """What each side gave at each repeat, one after the other, after one of each that does not count."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(each)) for each in sides]
        for worker in workers:
            worker.ready()
        rounds = [[worker.repeat() for worker in workers] for _ in range(repeats + 1)]
    return [list(values) for values in zip(*rounds[1:], strict=True)]


def once(what: Side) -> Any:
    """What a side says when it is set up, in a fresh process."""
    with Worker(what) as worker:
        return worker.ready()


class Turn:
    """A worker's end of the line: answers, and waits to be asked again. Ends the process when nobody will ask."""

    def __init__(self, answers: TextIO, requests: TextIO) -> None:
        self.answers, self.requests = answers, requests

    def __call__(self, value: Any = None) -> None:
        """Answer, and wait for the next request."""
        self.answers.write(json.dumps(value) + "\n")
        self.answers.flush()
        if not self.requests.readline():
            os._exit(0)  # whatever runs around this call


def serve(name: str, options: str) -> None:
    """Be the worker of a side: what it prints goes where its errors go, and stdout holds the answers alone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, function = name.split(":")
    run = getattr(import_module(f"scripts.benchmarks.{module}"), function)
    run(Turn(answers, sys.stdin), **json.loads(options))
