"""Commands as a user runs them, small data, and a run that many tests look at."""

import logging
import os
import signal
from pathlib import Path

# Before numpy and torch are imported: their threads and the other test workers' would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The processes that tests start find vae_lab and tests/helpers.
os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, Path(__file__).parents[1::-1]), os.environ.get("PYTHONPATH", "")])

import pytest
from helpers.commands import Command, warm_process
from helpers.data import FAST, write_pictures

# A job in the background of a script ignores Ctrl-C, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup: the tests send it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def warm():
    """The process that forks commands. It has no VAE_LAB_DATA: tests bring their own data."""
    with warm_process() as process:
        yield process


@pytest.fixture
def command(warm, tmp_path):
    """Runs vae_lab's commands in a folder of the test's own."""
    runs = Command(warm, tmp_path)
    yield runs
    if runs.started is not None and not runs.started.finished:  # a test failed between start and wait
        os.kill(runs.started.pid, signal.SIGKILL)
        runs.started.wait()


@pytest.fixture(scope="module")
def one_thread():
    """Two threads of small work on a busy machine wait for each other: 100 times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def logged_warnings(monkeypatch):
    """What is logged as a warning: caught at the logger, for a run in the same process sets up logging anew."""
    lines = []
    monkeypatch.setattr(logging.getLogger("vae_lab"), "warning", lambda text, *args: lines.append(text % args))
    return lines


@pytest.fixture(scope="session")
def fast_run(warm, tmp_path_factory):
    """One finished default run, everything exercised; do not write into it."""
    finished = Command(warm, tmp_path_factory.mktemp("fast"))(*FAST)
    assert finished.code == 0, finished.stderr
    return finished


@pytest.fixture
def pictures(tmp_path):
    """A folder of 30 colour pictures of 20x20."""
    return write_pictures(tmp_path / "pictures")
