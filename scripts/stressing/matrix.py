"""Every experiment file, killed within an epoch and gone on with under another number of steps in a call."""

from __future__ import annotations

import gzip
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scripts.stressing.cases import Case, case, told, wait_for, write_pictures
from scripts.stressing.commands import Command
from scripts.stressing.leavings import differences

CONF = Path(__file__).parents[2] / "conf" / "experiment"
QUICK = ("debug=fast", "trainer.num_threads=1", "trainer.limit_train_batches=6", "trainer.max_epochs=3",
         "callbacks.last.every_n_steps=4", "callbacks.images.pictures=[samples]")  # fmt: skip


def experiments() -> list[str]:
    """The names of all files."""
    return sorted(path.stem for path in CONF.glob("*.yaml"))


def write_data(root: Path) -> Path:
    """70,000 images in MNIST's files, every 100th of them not blank, and 40 pictures in pokemon."""
    folder, rng = root / "MNIST" / "raw", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images = np.zeros((count, 28, 28), dtype=np.uint8)
        images[::100, 6:22, 6:22] = rng.integers(0, 256, (count // 100, 16, 16))
        _write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        _write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    write_pictures(root / "pokemon", count=40, size=24)
    return root


def _write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), 1))


def matrix(commands: Command, root: Path, folder: Path, names: list[str]) -> Iterator[Case]:
    """Each is run whole, and killed after its first checkpoint, resumed, stopped by SIGTERM and resumed again."""
    for name in names:
        options = (f"experiment={name}", *QUICK, f"data.root={root}")
        whole, part = folder / f"{name}-whole", folder / name
        wrong = told(commands(*options, f"hydra.run.dir={whole}", cwd=folder), 0)
        if wrong is None:
            wrong = _killed(commands, options, part) or ", ".join(differences(part, whole)) or None
        yield case(f"experiment={name}", wrong, "the same bits after SIGKILL and SIGTERM")


def _killed(commands: Command, options: tuple[str, ...], part: Path) -> str | None:
    """What is wrong with a run that is stopped twice; None where it completes."""
    last = part / "checkpoints" / "last.ckpt"
    started = commands.start(*options, f"hydra.run.dir={part}", cwd=part.parent)
    wait_for(last.is_file, 120)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    saved = last.stat().st_mtime_ns
    again = commands.start(f"resume={part}", "trainer.steps_per_execution=1", cwd=part.parent)
    wait_for(lambda: last.stat().st_mtime_ns != saved or "test elbo" in again.output(), 120)
    os.kill(again.pid, signal.SIGTERM)
    ended = again.wait()
    if ended.code == 0:  # it was done before the signal came
        return None
    return told(ended, 143) or told(commands(f"resume={part}", "trainer.steps_per_execution=3", cwd=part.parent), 0)
