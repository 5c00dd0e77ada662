"""Break runs on purpose and look what is left: kills, full disks, damaged files.

    python scripts/stress.py                     # every part: about five minutes on two cores
    python scripts/stress.py kills --kills 50    # one part
    python scripts/stress.py --json report.json

The disks need the right to mount a file system; a part that cannot be tried says so, and counts as failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(ROOT)]  # in place of scripts/, whose profile.py would hide Python's own

from scripts.stressing import cases, matrix, signals  # noqa: E402
from scripts.stressing.cases import Case  # noqa: E402
from scripts.stressing.commands import Command, warm_process  # noqa: E402
from scripts.stressing.kills import Kills, Session, killed_run  # noqa: E402
from scripts.stressing.picture import draw  # noqa: E402

KILLED = ("debug=fast", "trainer.num_threads=1", "trainer.limit_train_batches=7", "trainer.max_epochs=150",
          "callbacks.images.every_n_epochs=20", "callbacks.images.pictures=[samples,reconstructions]",
          "optimizer.ema_decay=0.9", "optimizer/schedule=cosine", "data.binarize=dynamic", "data.shift=1",
          "callbacks.last.every_n_seconds=0.3", "trainer.log_every_n_steps=3")  # fmt: skip


def kills(commands: Command, folder: Path, options: argparse.Namespace) -> Iterator[Case]:
    """Runs killed at random moments, five times each, until so many kills were made."""
    (folder / "whole").mkdir()
    whole = Command(commands.warm, folder / "whole")(*KILLED)
    yield cases.case("the run that is never killed", cases.told(whole, 0), "completed")
    total, seed = Kills(), options.seed
    while sum(total.sent.values()) < options.kills:
        (place := folder / f"killed{seed}").mkdir()
        total += killed_run(Command(commands.warm, place), KILLED, whole.run, 5, (0.4, 3.0), seed)
        seed += 1
    sent = ", ".join(f"{count} {name}" for name, count in sorted(total.sent.items()))
    wrong = total.failures + total.differences
    runs = seed - options.seed
    if options.picture:
        draw(options.picture, whole.run / "metrics.csv", max(total.runs, key=killed_hard))
    found = f"{sent} in {runs} runs, {total.from_nothing} before a checkpoint; all ended with the same bits"
    yield Case(f"{sum(total.sent.values())} kills", "; ".join(wrong) or found, not wrong)


def killed_hard(sessions: list[Session]) -> int:
    """How many of the processes of a run had no warning."""
    return sum(session.ended_by == "SIGKILL" for session in sessions)


def experiments(commands: Command, folder: Path, options: argparse.Namespace) -> Iterator[Case]:
    """Every experiment file, killed and resumed twice."""
    yield from matrix.matrix(commands, matrix.write_data(folder / "data"), folder, matrix.experiments())


def disks(commands: Command, folder: Path, options: argparse.Namespace) -> Iterator[Case]:
    """Full, read-only, missing."""
    yield cases.full_disk(commands, fresh(folder, "full"))
    yield cases.full_disk(commands, fresh(folder, "drawing"), pictures=True)
    yield cases.read_only(commands, fresh(folder, "read_only"))
    yield cases.read_only_outputs(commands, fresh(folder, "outputs"))
    yield from cases.missing_mount(commands, fresh(folder, "missing"))


def files(commands: Command, folder: Path, options: argparse.Namespace) -> Iterator[Case]:
    """Damaged checkpoints and caches."""
    yield cases.flipped_checkpoint(commands, fresh(folder, "flips"))
    yield from cases.damaged_checkpoint(commands, fresh(folder, "checkpoint"))
    yield from cases.damaged_cache(commands, fresh(folder, "cache"))
    yield cases.vanishing_data(commands, fresh(folder, "vanishing"))


def together(commands: Command, folder: Path, options: argparse.Namespace) -> Iterator[Case]:
    """Several processes."""
    yield cases.same_second(fresh(folder, "second"))
    yield cases.same_cache(fresh(folder, "cache"))
    yield cases.same_run(commands, fresh(folder, "run"))


PARTS: dict[str, Callable[[Command, Path, argparse.Namespace], Iterable[Case]]] = {
    "kills": kills,
    "experiments": experiments,
    "signals": signals.signals,
    "disks": disks,
    "files": files,
    "together": together,
}


def fresh(folder: Path, name: str) -> Path:
    """A new folder."""
    (path := folder / name).mkdir(parents=True)
    return path


def tried(name: str, commands: Command, folder: Path, options: argparse.Namespace) -> Iterator[Case]:
    """The cases of a part; one that cannot be tried has failed."""
    try:
        yield from PARTS[name](commands, folder, options)
    except Exception as error:
        yield Case(f"{name}: could not be tried", f"{type(error).__name__}: {error}", False)


def arguments(argv: list[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python scripts/stress.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--kills", type=int, default=50, help="how many (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills")
    parser.add_argument("--picture", type=Path, help="draw the sessions of one killed run there, as PNG")
    parser.add_argument("--json", type=Path, help="write the report there")
    found = parser.parse_args(argv)
    if unknown := [part for part in found.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; expected {', '.join(PARTS)}")
    return found


def main(argv: list[str]) -> int:
    """Run the parts, print each case as it comes; 1 if any went wrong."""
    options = arguments(argv)
    report = []
    with warm_process() as warm, tempfile.TemporaryDirectory(prefix="vae_lab-stress-") as temporary:
        for name in options.parts or PARTS:
            started = time.monotonic()
            (home := Path(temporary) / name).mkdir()
            for case in tried(name, Command(warm, home), home, options):
                print(f"{'ok  ' if case.ok else 'FAIL'}  {case.name}: {case.found}", flush=True)
                report.append({"part": name, **case._asdict()})
            print(f"      {name} took {time.monotonic() - started:.0f} s", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(not case["ok"] for case in report))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
