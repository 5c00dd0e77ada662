"""Kill and interrupt runs on purpose; what is left must equal, to the bit, a run that was never stopped.

    python scripts/stress.py                     # both parts
    python scripts/stress.py kills --kills 50    # SIGKILL, SIGTERM, SIGUSR1, SIGINT at random moments, then resumed
    python scripts/stress.py signals             # exit codes, and seconds to them, wherever a run is
    python scripts/stress.py --json FILE

Every process is a plain `python -m vae_lab.train`, about 6 seconds to its first step on an idle machine: N kills take
about 15 N seconds (20 of them five minutes), the twelve signals three minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}
KILLS_PER_RUN = 5
RUN = ("debug=fast", "trainer.num_threads=1", "trainer.limit_train_batches=7", "trainer.max_epochs=150",
       "callbacks.images.every_n_epochs=20", "callbacks.images.pictures=[samples,reconstructions]",
       "optimizer.ema_decay=0.9", "optimizer/schedule=cosine", "data.binarize=dynamic", "data.shift=1",
       "callbacks.last.every_n_seconds=0.3", "trainer.log_every_n_steps=3")  # fmt: skip


class Case(NamedTuple):
    """One row of the report."""

    part: str
    name: str
    result: str
    ok: bool


class Process(Protocol):
    """A command in a process of its own; `wait` gives its exit code, or kills it after so many seconds."""

    @property
    def pid(self) -> int: ...
    def output(self) -> str: ...
    def wait(self, seconds: float = ...) -> int: ...


Start = Callable[[Path, Sequence[str]], Process]


class Command:
    """`python -m vae_lab.train ARGV` in a folder."""

    def __init__(self, folder: Path, argv: Sequence[str]) -> None:
        self.path = folder / "output.txt"
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with self.path.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vae_lab.train", *argv], cwd=folder, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self.pid = self.process.pid

    def output(self) -> str:
        return self.path.read_text()

    def wait(self, seconds: float = 300) -> int:
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        self.process.kill()
        return self.process.wait()


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Poll until a condition holds. TimeoutError: it does not."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain for {seconds} s")
        time.sleep(0.01)


def wrong_ending(process: Process, code: int, expected: Sequence[int]) -> list[str]:
    """What is wrong with how a command ended: its code, or a traceback."""
    found = [] if code in expected else [f"exit code {code}, expected {' or '.join(map(str, expected))}"]
    return found + (["a traceback"] if "Traceback" in process.output() else [])


# --- kills ------------------------------------------------------------------------------------------------


class KilledRun(NamedTuple):
    """The signals that were sent, and what is wrong with the endings and with the result."""

    sent: Counter[str]
    wrong: list[str]


def killed_run(
    folder: Path, argv: Sequence[str], whole: Path, kills: int, seconds: tuple[float, float], seed: int = 0,
    start: Start = Command,
) -> KilledRun:  # fmt: skip
    """A run killed so many times, each between `seconds` after a start, then resumed to its end, beside `whole`."""
    chance, sent, wrong = random.Random(seed), Counter[str](), list[str]()
    for _ in range(kills):
        process = start(folder, next_argv(folder, argv, chance))
        time.sleep(chance.uniform(*seconds))
        sign = chance.choice(SIGNALS)
        with suppress(ProcessLookupError):
            os.kill(process.pid, sign)
        code = process.wait()
        if code == 0:  # completed before the signal
            break
        sent[sign.name] += 1
        if "steps an epoch" in process.output():  # before that, Python's own handlers may be in place
            wrong += wrong_ending(process, code, [CODES[sign]])
    else:
        process = start(folder, next_argv(folder, argv, chance))
        wrong += wrong_ending(process, process.wait(), [0])
    done = [run for run in folder.glob("outputs/*/*") if summary_of(run).get("status") == "completed"]
    wrong += differences(done[0], whole) if len(done) == 1 else [f"{len(done)} completed runs"]
    return KilledRun(sent, wrong)


def next_argv(folder: Path, argv: Sequence[str], chance: random.Random) -> list[str]:
    """Resume by `auto`, or by name with another number of steps in a call."""
    saved = [path.parents[1] for path in folder.glob("outputs/*/*/checkpoints/last.ckpt")]
    if not saved or chance.random() < 0.5:
        return [*argv, "resume=auto"]
    return [f"resume={max(saved)}", f"trainer.steps_per_execution={chance.choice((1, 2, 5, 'auto'))}"]


def differences(run: Path, other: Path) -> list[str]:
    """What differs to the bit: weights, averaged weights, optimiser and schedule in both checkpoints, the metrics."""
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (torch.load(folder / "checkpoints" / name) for folder in (run, other))
        parts = ("global_step", "state_dict", "optimizer_states", "lr_schedulers")
        found += [f"{name}: {part}" for part in parts if not same(ours[part], theirs[part])]
    if (run / "metrics.csv").read_bytes() != (other / "metrics.csv").read_bytes():
        found.append("metrics.csv")
    results = summary_of(run), summary_of(other)
    keys = ("status", "metrics", "best_metrics", "warnings", "steps", "epochs")
    return found + [f"summary.json: {key}" for key in keys if results[0][key] != results[1][key]]


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, whatever the containers hold."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def summary_of(run: Path) -> dict[str, Any]:
    """The content of summary.json; empty if there is none."""
    path = run / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def kills(folder: Path, options: argparse.Namespace) -> Iterator[Case]:
    """Runs killed a few times each, until so many signals were sent."""
    (whole := folder / "whole").mkdir()
    started, process = time.monotonic(), Command(whole, RUN)
    wait_for(lambda: list(whole.glob("outputs/*/*/checkpoints/last.ckpt")))
    start_up = time.monotonic() - started
    wrong = wrong_ending(process, process.wait(), [0])
    yield Case("kills", "the run that is never killed", "; ".join(wrong) or "completed", not wrong)
    (run,) = whole.glob("outputs/*/*")
    sent, seed = 0, options.seed
    while sent < options.kills and not wrong:
        (place := folder / f"seed{seed}").mkdir()
        count = min(KILLS_PER_RUN, options.kills - sent)
        found = killed_run(place, RUN, run, count, (start_up / 2, start_up + 3), seed)
        sent, seed, wrong = sent + found.sent.total(), seed + 1, found.wrong
        signals_sent = ", ".join(f"{n} {name}" for name, n in sorted(found.sent.items())) or "none in time"
        yield Case("kills", f"seed {seed - 1}: {signals_sent}", "; ".join(wrong) or "the same bits", not wrong)


# --- signals ----------------------------------------------------------------------------------------------

ONE = ("trainer.num_threads=1", "trainer.max_epochs=1000", "callbacks.last.every_n_seconds=0")
BARE = (*ONE, "callbacks.images=null")
SLOW = ("model=resnet", "data.batch_size=8", "data.eval_batch_size=1", "trainer.limit_train_batches=3")
PHASES = {  # what is run, and what its output says by then
    "training": (BARE, "val elbo"),
    "a long call": ((*BARE, "model=resnet", "trainer.steps_per_execution=64"), "steps an epoch"),
    "validation": ((*BARE, *SLOW, "data.val_size=1400", "data.test_size=10"), "steps an epoch"),
    "pictures": ((*ONE, "callbacks.images.every_n_epochs=1"), "val elbo"),
    "the last pictures": ((*ONE, "trainer.max_epochs=1"), "val elbo"),
    "the test": ((*BARE, *SLOW, "trainer.max_epochs=1", "data.val_size=10", "data.test_size=1400"), "val elbo"),
}


def interrupted(folder: Path, phase: str, sign: signal.Signals, start: Start = Command) -> tuple[list[str], float]:
    """What is wrong with how a run in that phase answers a signal, and the seconds it took."""
    argv, words = PHASES[phase]
    process = start(folder, argv)
    wait_for(lambda: words in process.output())
    time.sleep(0.1)
    asked = time.monotonic()
    os.kill(process.pid, sign)
    wrong = wrong_ending(process, process.wait(30), [CODES[sign]])
    seconds = time.monotonic() - asked
    wrong += [f"took {seconds:.1f} s"] if seconds > 5 else []
    if not list(folder.glob("outputs/*/*/checkpoints/last.ckpt")):
        wrong.append("no checkpoint")
    return wrong, seconds


def signals(folder: Path, options: argparse.Namespace) -> Iterator[Case]:
    """Each phase under SIGTERM and SIGINT."""
    for phase in PHASES:
        for sign in (signal.SIGTERM, signal.SIGINT):
            (place := folder / f"{phase}-{sign}").mkdir()
            wrong, seconds = interrupted(place, phase, sign)
            result = "; ".join(wrong) or f"exit code {CODES[sign]} after {seconds:.2f} s"
            yield Case("signals", f"{sign.name} during {phase}", result, not wrong)


PARTS = {"kills": kills, "signals": signals}


def main(argv: Sequence[str]) -> int:
    """Print each case as it comes; 1 if any went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: both")
    parser.add_argument("--kills", type=int, default=20, help="number of signals of the part `kills` (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the signals and their moments")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report there")
    options = parser.parse_args(argv)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]}: expected {', '.join(PARTS)}")
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored in a job of a script's background, and by children
    report = []
    with tempfile.TemporaryDirectory(prefix="vae_lab-stress-") as temporary:
        for part in options.parts or PARTS:
            (folder := Path(temporary) / part).mkdir()
            for case in PARTS[part](folder, options):
                print(f"{'ok' if case.ok else 'FAIL':6}{case.part:9}{case.name:48}{case.result}", flush=True)
                report.append(case)
    if options.json:
        options.json.write_text(json.dumps([case._asdict() for case in report], indent=2) + "\n")
    return int(not all(case.ok for case in report))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
