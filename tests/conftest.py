"""Commands as a user runs them, small data, and a run that many tests look at."""

import logging
import os
import signal
import sys
from pathlib import Path

# Before torch is imported: its threads and the other test workers' would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from commands import TESTS, Command, warm_process
from PIL import Image

__all__ = ["FAST", "TESTS", "Command", "write_pictures"]

# A job in the background of a script ignores Ctrl-C, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

sys.path.append(str(TESTS.parent))  # scripts/ is beside the package, not in it
FAST = ("debug=fast", "trainer.num_threads=1")


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
def told(monkeypatch):
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


def write_pictures(folder: Path, count: int = 30, size: int = 20, seed: int = 0) -> Path:
    """Colour pictures that differ: a bright square somewhere on a coloured ground."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.full((size, size, 3), rng.integers(0, 200, 3), dtype=np.uint8)
        y, x = rng.integers(0, size // 2, 2)
        pixels[y : y + size // 3, x : x + size // 3] = 255
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture
def pictures(tmp_path):
    """A folder of 30 colour pictures of 20x20."""
    return write_pictures(tmp_path / "pictures")
