"""Commands as a user runs them, small data, and a run that many tests look at."""

import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Before torch is imported: its threads and the other test workers' would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

# A job in the background of a script ignores Ctrl-C, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent
FAST = ("debug=fast", "trainer.num_threads=1")


@dataclass
class Finished:
    """What a command left."""

    code: int
    stdout: str
    stderr: str
    cwd: Path

    @property
    def run(self) -> Path:
        """The only run directory below the command's folder."""
        (found,) = [path.parent for path in self.cwd.glob("outputs/**/summary.json")]
        return found

    @property
    def summary(self) -> dict:
        return json.loads((self.run / "summary.json").read_text())


class Started:
    """A command that runs."""

    def __init__(self, warm: subprocess.Popen, cwd: Path, files: dict) -> None:
        self.warm, self.cwd, self.files = warm, cwd, files
        self.finished = False
        self.pid = json.loads(warm.stdout.readline())["pid"]

    def output(self) -> str:
        return Path(self.files["stderr"]).read_text() + Path(self.files["stdout"]).read_text()

    def wait(self, seconds: float = 90) -> Finished:
        if not select.select([self.warm.stdout], [], [], seconds)[0]:
            os.kill(self.pid, signal.SIGKILL)
        code = json.loads(self.warm.stdout.readline())["code"]
        self.finished = True
        texts = [Path(self.files[name]).read_text() for name in ("stdout", "stderr")]
        return Finished(code, *texts, self.cwd)


class Command:
    """`command("data=digits", ...)` runs `python -m vae_lab.train data=digits ...`."""

    def __init__(self, warm: subprocess.Popen, cwd: Path) -> None:
        self.warm, self.cwd = warm, cwd
        self.started: Started | None = None

    def start(self, *argv: str, module="vae_lab.train", cwd=None, **env: str) -> Started:
        cwd = Path(cwd or self.cwd)
        files = {name: str(self.cwd / f"{name}.txt") for name in ("stdout", "stderr")}
        for path in files.values():
            Path(path).write_text("")  # there to be read before the child has opened it
        request = {"argv": list(argv), "module": module, "cwd": str(cwd), "env": env, **files}
        self.warm.stdin.write(json.dumps(request).encode() + b"\n")
        self.started = Started(self.warm, cwd, files)
        return self.started

    def __call__(self, *argv: str, **options: str) -> Finished:
        return self.start(*argv, **options).wait()


@pytest.fixture(scope="session")
def warm():
    """The process that forks commands. It has no VAE_LAB_DATA: tests bring their own data."""
    hidden = {"VAE_LAB_DATA", "HYDRA_FULL_ERROR", "COLUMNS"}
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "warm.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # so that select sees every answer that was not read yet
        env=env | {"OMP_NUM_THREADS": "1", "VAE_LAB_CACHE": "cache"},
    )
    assert process.stdout.readline() == b"{}\n"
    yield process
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture
def command(warm, tmp_path):
    """Runs vae_lab's commands in a folder of the test's own."""
    runs = Command(warm, tmp_path)
    yield runs
    if runs.started is not None and not runs.started.finished:  # a test failed between start and wait
        os.kill(runs.started.pid, signal.SIGKILL)
        runs.started.wait()


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
