"""How fast a run answers a scheduler's signal, wherever it is: everything saved, exit code 143, within 5 seconds."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from scripts.stressing.cases import Case, ends_in_time, saved, wait_for, write_pictures
from scripts.stressing.commands import Command, Started

ONE = ("trainer.num_threads=1", "trainer.max_epochs=1000", "callbacks.last.every_n_seconds=0")
SLOW_VALIDATION = ("model=resnet", "data.eval_batch_size=1", "data.val_size=1400", "trainer.limit_train_batches=1")


class Phase(NamedTuple):
    """Where a signal comes: what is run, and what shows that it is there."""

    name: str
    options: tuple[str, ...]
    shows: Callable[[Started], object]
    resumable: bool = True


def signals(commands: Command, folder: Path, options: argparse.Namespace) -> Iterator[Case]:
    """Each phase under SIGTERM and SIGUSR1; on the real pictures too, where VAE_LAB_DATA has them."""
    pictures = write_pictures(folder / "pictures", 3000, 96)
    for number, phase in enumerate(phases(folder, pictures)):
        for sign in (signal.SIGTERM, signal.SIGUSR1):
            (place := folder / f"{number}-{sign}").mkdir()
            started = Command(commands.warm, place).start(*phase.options)
            wait_for(lambda phase=phase, started=started: phase.shows(started), 120)
            time.sleep(0.3)
            wrong, seconds = ends_in_time(started, sign, 143)
            if wrong is None and phase.resumable and not saved(place):
                wrong = "no checkpoint"
            yield Case(f"{sign.name} during {phase.name}", wrong or f"exit 143 after {seconds:.2f} s", wrong is None)


def says(words: str, times: int = 1) -> Callable[[Started], bool]:
    """Whether a command has said so, so often."""
    return lambda run: run.output().count(words) >= times


def phases(folder: Path, pictures: Path) -> Iterator[Phase]:
    """Of a run's life."""
    several = "callbacks.images.every_n_epochs=1"
    yield Phase("training", (*ONE, "callbacks.images=null"), says("val elbo"))
    yield Phase("a long call", (*ONE, "callbacks.images=null", "model=resnet", "trainer.steps_per_execution=64"),
                says("steps an epoch"))  # fmt: skip
    yield Phase("validation", (*ONE, "callbacks.images=null", *SLOW_VALIDATION, "data.test_size=10"),
                says("steps an epoch"))  # fmt: skip
    yield Phase("pictures in copies", (*ONE, several), says("val elbo"))
    yield Phase("pictures in the process", (*ONE, several, "callbacks.images.background=false"), says("val elbo"))
    yield Phase("the last pictures and the test", (*ONE[:1], "trainer.max_epochs=2", "data.eval_batch_size=1"),
                says("val elbo", times=2))  # fmt: skip
    decoding = ("data=folder", f"data.folder={pictures}", "data.image_size=64", f"data.cache_dir={folder}/none")
    yield Phase("decoding", (*ONE, *decoding), lambda run: list(Path(folder, "none").glob(".building-*")), False)
    root = os.environ.get("VAE_LAB_DATA")
    if root:
        real = ("model=conv", "data=pokemon", f"data.root={Path(root).resolve()}", f"data.cache_dir={folder}/real")
        yield Phase("training on 128x128 pictures", (*ONE, *real), says("steps an epoch"))
        yield Phase("drawing 128x128 pictures", (*ONE, *real, several, "trainer.limit_train_batches=1"),
                    says("val elbo"))  # fmt: skip
