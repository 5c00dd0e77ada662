"""One fault each, on a real run: what it is, what came of it, and whether that is right."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from scripts.stressing.commands import Command, Finished, Started, warm_process
from vae_lab.runs.checkpoint_io import load_checkpoint
from vae_lab.utils.errors import UsageError

SMALL = ("debug=fast", "trainer.num_threads=1", "callbacks.images=null")
ENDLESS = (*SMALL, "trainer.max_epochs=100000", "callbacks.last.every_n_seconds=0.2")


class Case(NamedTuple):
    """A fault and its outcome."""

    name: str
    found: str
    ok: bool


def told(ended: Finished, code: int, *words: str) -> str | None:
    """What is wrong with how a command ended: its code, a traceback, or words not said; None if nothing."""
    if ended.code != code:
        return f"exit code {ended.code} in place of {code}: {ended.stderr[-500:]}"
    if "Traceback" in ended.stderr:
        return f"a traceback: {ended.stderr[-1500:]}"
    missing = [word for word in words if word not in ended.stderr]
    return f"does not say {missing}: {ended.stderr[-500:]}" if missing else None


def case(name: str, wrong: str | None, right: str) -> Case:
    """What was found of it."""
    return Case(name, wrong or right, wrong is None)


def run_of(folder: Path) -> Path:
    """The only run below a folder."""
    (found,) = folder.glob("outputs/*/*")
    return found


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Until it holds. RuntimeError: it does not."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("waited in vain")
        time.sleep(0.01)


def saved(folder: Path) -> bool:
    """Whether a run below has a checkpoint."""
    return bool(list(folder.glob("outputs/*/*/checkpoints/last.ckpt")))


# --- disks ------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, size: str = "60m") -> Iterator[Path]:
    """A file system of its own in memory; the right to mount one is needed."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """A folder on a file system that is read-only; the right to mount one is needed."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    """To the last byte."""
    for number, size in enumerate((2**16, 2**10, 1)):
        with (disk / f"ballast{number}").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def make_room(disk: Path) -> None:
    """Again."""
    for path in disk.glob("ballast*"):
        path.unlink()


def full_disk(commands: Command, folder: Path, pictures: bool = False) -> Case:
    """A disk runs full while a run trains: an error in a few lines, and the run goes on once there is room."""
    options = ENDLESS if not pictures else tuple(it for it in ENDLESS if "images" not in it)
    with small_disk(folder / "disk") as disk:
        started = commands.start(*options, cwd=disk)
        wait_for(lambda: saved(disk))
        fill(disk)
        wrong = told(started.wait(), 1, "No space left on device", "resume=")
        make_room(disk)
        return case(f"full disk{' with pictures' if pictures else ''}", wrong or goes_on(commands, run_of(disk)),
                    "exit 1, in a few lines; the last checkpoint is whole; resumed and completed")  # fmt: skip


def goes_on(commands: Command, run: Path) -> str | None:
    """What is wrong with a resume of a run; None if it completes."""
    step = load_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"]
    load_checkpoint(run / "checkpoints" / "best.ckpt")
    return told(commands(f"resume={run}", f"trainer.max_epochs={step // 3 + 2}"), 0)


def read_only(commands: Command, folder: Path) -> Case:
    """The folder of the checkpoints cannot be written any longer."""
    started = commands.start(*ENDLESS, cwd=folder)
    wait_for(lambda: saved(folder))
    with unwritable(run_of(folder) / "checkpoints"):
        wrong = told(started.wait(), 1, "Read-only file system", "checkpoints")
    return case("read-only checkpoints", wrong or goes_on(commands, run_of(folder)),
                "exit 1, the file named; the last checkpoint is whole; resumed and completed")  # fmt: skip


def read_only_outputs(commands: Command, folder: Path) -> Case:
    """outputs/ cannot be written at all."""
    (outputs := folder / "outputs").mkdir()
    with unwritable(outputs):
        wrong = told(commands(*SMALL, cwd=folder), 2, "cannot write the run directory", "Read-only file system")
    return case("read-only outputs", wrong, "exit 2, hydra.run.dir named")


def missing_mount(commands: Command, folder: Path) -> Iterator[Case]:
    """Folders that are not there."""
    asked = {
        "data.folder of nothing": (["data=folder", "data.folder=/mnt/gone"], "/mnt/gone"),
        "data.root of nothing": (["data=pokemon", "data.root=/mnt/gone"], "/mnt/gone/pokemon"),
        "resume of nothing": (["resume=/mnt/gone"], "no such folder"),
        "init_from of nothing": (["init_from=/mnt/gone"], "/mnt/gone"),
    }
    for name, (options, word) in asked.items():
        yield case(name, told(commands(*SMALL, *options, cwd=folder), 2, word), "exit 2, the folder named")


# --- caches -----------------------------------------------------------------------------------------------


def write_pictures(folder: Path, count: int = 200, size: int = 48) -> Path:
    """Noise in colour."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def damaged_cache(commands: Command, folder: Path) -> Iterator[Case]:
    """Every kind of damage: the pictures are decoded anew, to the same numbers."""
    pictures = write_pictures(folder / "pictures")
    options = (*SMALL, "data=folder", f"data.folder={pictures}", "data.image_size=16", f"data.cache_dir={folder}/cache")
    first = commands(*options, "hydra.run.dir=first", cwd=folder)
    if wrong := told(first, 0):
        yield case("cache: none yet", wrong, "made")
        return
    table = (folder / "first" / "metrics.csv").read_bytes()
    (pixels,), (names,) = (folder / "cache").glob("*.npy"), (folder / "cache").glob("*.json")
    damages: dict[str, Callable[[], object]] = {
        "cut short": lambda: os.truncate(pixels, 1000),
        "names cut short": lambda: names.write_text("["),
        "gone": lambda: shutil.rmtree(folder / "cache"),
    }
    for number, (name, damage) in enumerate(damages.items()):
        damage()
        ended = commands(*options, f"hydra.run.dir=again{number}", cwd=folder)
        wrong = told(ended, 0)
        if wrong is None and (folder / f"again{number}" / "metrics.csv").read_bytes() != table:
            wrong = "other numbers than before"
        yield case(f"cache: {name}", wrong, "made again, the same numbers")


def vanishing_data(commands: Command, folder: Path) -> Case:
    """The pictures and their cache are removed while a run trains on them."""
    pictures = write_pictures(folder / "pictures")
    started = commands.start(*ENDLESS, "data=folder", f"data.folder={pictures}", "data.image_size=16",
                             f"data.cache_dir={folder}/cache", cwd=folder)  # fmt: skip
    wait_for(lambda: saved(folder))
    shutil.rmtree(folder / "cache")
    shutil.rmtree(pictures)
    time.sleep(1)
    os.kill(started.pid, signal.SIGTERM)
    return case("pictures and cache removed", told(started.wait(), 143), "trains on; saved at SIGTERM")


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(place)
        value = file.read(1)[0]
        file.seek(place)
        file.write(bytes([value ^ 1 << bit]))


# --- checkpoints ------------------------------------------------------------------------------------------


def flipped_checkpoint(commands: Command, folder: Path, places: int = 200) -> Case:
    """A bit flipped at so many places, one at a time: found by name, or nothing that is loaded differs."""
    commands(*SMALL, cwd=folder)
    path = run_of(folder) / "checkpoints" / "last.ckpt"
    right, size, chance = load_checkpoint(path)["state_dict"], path.stat().st_size, random.Random(0)
    found, harmless, wrong = 0, 0, []
    for _ in range(places):
        place, bit = chance.randrange(size), chance.randrange(8)
        flip(path, place, bit)
        try:
            loaded = load_checkpoint(path)["state_dict"]
            same = loaded.keys() == right.keys() and all(torch.equal(loaded[name], right[name]) for name in right)
            harmless += same
            wrong += [] if same else [place]
        except UsageError:
            found += 1
        flip(path, place, bit)
    return case(f"{places} flipped bits", f"wrong weights: {wrong}" if wrong else None,
                f"{found} found, {harmless} harmless")  # fmt: skip


def damaged_checkpoint(commands: Command, folder: Path) -> Iterator[Case]:
    """last.ckpt cut short, empty, of another kind; then best.ckpt is gone on from."""
    commands(*SMALL, "trainer.max_epochs=3", cwd=folder)
    run = run_of(folder)
    path, content = run / "checkpoints" / "last.ckpt", (run / "checkpoints" / "last.ckpt").read_bytes()
    (run / "summary.json").unlink()
    kinds = {"cut short": content[:-5000], "empty": b"", "of another kind": b"weights " * 1000}
    for name, damaged in kinds.items():
        path.write_bytes(damaged)
        ended = commands(f"resume={run}", cwd=folder)
        yield case(f"last.ckpt {name}", told(ended, 2, "last.ckpt", "best.ckpt"), "exit 2, another one named")
    ended = commands(f"resume={run}/checkpoints/best.ckpt", "trainer.max_epochs=4", cwd=folder)
    yield case("resume from best.ckpt", told(ended, 0), "completed")


# --- several processes ------------------------------------------------------------------------------------


def at_once(count: int, argv: tuple[str, ...], folder: Path) -> list[Finished]:
    """So many processes of one command, in one folder, started together."""

    def one(number: int) -> Finished:
        with warm_process() as warm:
            (folder / f"out{number}").mkdir()
            commands = Command(warm, folder / f"out{number}")
            ready.wait()
            return commands(*argv, cwd=folder)

    ready = threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def first_wrong(ended: list[Finished]) -> str | None:
    """What is wrong with the first that did not complete; None if all did."""
    return next((wrong for each in ended if (wrong := told(each, 0))), None)


def same_second(folder: Path, count: int = 4) -> Case:
    """Runs started in the same second in the same folder: a directory each."""
    ended = at_once(count, (*SMALL, "trainer.max_epochs=1"), folder)
    runs = [path for path in folder.glob("outputs/*/*") if (path / "checkpoints" / "last.ckpt").is_file()]
    wrong = first_wrong(ended) or (None if len(runs) == count else f"{len(runs)} directories")
    names = ", ".join(sorted(path.name[-11:] for path in runs))
    return case(f"{count} runs in the same second", wrong, f"a directory each: {names}")


def same_cache(folder: Path, count: int = 4) -> Case:
    """Runs that build the same cache: one whole one is left."""
    pictures = write_pictures(folder / "pictures", 400)
    ended = at_once(count, (*SMALL, "data=folder", f"data.folder={pictures}", "data.image_size=32",
                            f"data.cache_dir={folder}/cache", "trainer.max_epochs=1"), folder)  # fmt: skip
    left = [path.name for path in (folder / "cache").glob("*.npy")]
    tables = {path.read_bytes() for path in folder.glob("outputs/*/*/metrics.csv")}
    one = len(left) == len(tables) == 1
    wrong = first_wrong(ended) or (None if one else f"left {left}, {len(tables)} different tables")
    return case(f"{count} runs build one cache", wrong, "one whole cache, the same numbers")


def same_run(commands: Command, folder: Path) -> Case:
    """A second process resumes a run that is still training."""
    started = commands.start(*ENDLESS, cwd=folder)
    wait_for(lambda: saved(folder))
    with warm_process() as warm:
        (folder / "second").mkdir()
        second = Command(warm, folder / "second")(f"resume={run_of(folder)}", cwd=folder)
    os.kill(started.pid, signal.SIGTERM)
    wrong = told(second, 2, "another process is training this run") or told(started.wait(), 143)
    return case("resume of a run that trains", wrong, "exit 2; the first goes on")


def ends_in_time(started: Started, sign: int, code: int) -> tuple[str | None, float]:
    """What is wrong with how a command answers a signal, and how long that took."""
    asked = time.monotonic()
    os.kill(started.pid, sign)
    ended = started.wait()
    took = time.monotonic() - asked
    return told(ended, code) or (None if took < 5.0 else f"took {took:.1f} s"), took
