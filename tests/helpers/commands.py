"""Commands as a user runs them, forked from one process that has imported everything."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WARM = Path(__file__).with_name("warm.py")
QUIET = ("debug=fast", "trainer.num_threads=1", "callbacks.images=null", "callbacks.baseline=null", "logger=null")


@contextmanager
def warm_process() -> Iterator[subprocess.Popen]:
    """The process that forks; one thread of torch in each child, and a cache in its folder."""
    hidden = {"VAE_LAB_DATA", "HYDRA_FULL_ERROR", "COLUMNS"}
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    process = subprocess.Popen(
        [sys.executable, "-P", str(WARM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # so that select sees every answer that was not read yet
        env=env | {"OMP_NUM_THREADS": "1", "VAE_LAB_CACHE": "cache"},
    )
    assert process.stdout.readline() == b"{}\n"
    yield process
    process.stdin.close()
    process.wait(timeout=30)


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

    def start(self, *argv: str, module: str = "vae_lab.train", cwd: str | Path | None = None, **env: str) -> Started:
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


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Poll until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def saved(folder: Path) -> bool:
    """Whether a run below has a checkpoint."""
    return any(folder.glob("outputs/*/*/checkpoints/last.ckpt"))
