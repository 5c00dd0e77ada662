"""Runs that are killed at random moments and gone on with, beside one that never was: they must end as it did."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from scripts.stressing.cases import told
from scripts.stressing.commands import Command, Finished
from scripts.stressing.leavings import differences
from vae_lab.callbacks.metrics_csv import read_rows
from vae_lab.runs.checkpoint_io import load_checkpoint
from vae_lab.runs.resume import read_summary

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}


class Session(NamedTuple):
    """One process of a run."""

    first: int  # the step that it went on from
    reached: int  # of its last validation
    ended_by: str


@dataclass
class Kills:
    """How many signals of each kind were sent, where runs began anew, and what differed in the end."""

    sent: Counter[str] = field(default_factory=Counter)
    from_nothing: int = 0  # killed before the first checkpoint
    failures: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    runs: list[list[Session]] = field(default_factory=list)

    def __iadd__(self, other: Kills) -> Kills:
        self.sent += other.sent
        self.from_nothing += other.from_nothing
        self.failures += other.failures
        self.differences += other.differences
        self.runs += other.runs
        return self


def killed_run(
    command: Command, argv: Sequence[str], whole: Path, kills: int, seconds: tuple[float, float], seed: int = 0
) -> Kills:
    """Run `argv` in the command's folder with so many kills, each so long after a start, and compare with `whole`.

    It is gone on with by resume=auto, or by name and with another number of steps in a call.
    """
    chance, report, sessions = random.Random(seed), Kills(), []
    for _ in range(kills):
        first = saved_step(command.cwd)
        started = command.start(*way_on(command.cwd, argv, chance, report))
        time.sleep(chance.uniform(*seconds))
        sign = chance.choice(SIGNALS)
        with suppress(ProcessLookupError):
            os.kill(started.pid, sign)
        ended = started.wait()
        if ended.code == 0:  # faster than the kill
            break
        sessions.append(Session(first, reached_step(command.cwd), signal.Signals(sign).name))
        report.sent[signal.Signals(sign).name] += 1
        check(ended, CODES[sign], report)
    else:
        first = saved_step(command.cwd)
        ended = command(*way_on(command.cwd, argv, chance, report))
        check(ended, 0, report)
    report.runs.append([*sessions, Session(first, reached_step(command.cwd), "")])
    done = [run for run in command.cwd.glob("outputs/*/*") if read_summary(run).get("status") == "completed"]
    report.differences += differences(done[0], whole) if len(done) == 1 else [f"{len(done)} runs were completed"]
    return report


def saved_step(folder: Path) -> int:
    """What a run below would go on from."""
    saved = sorted(folder.glob("outputs/*/*/checkpoints/last.ckpt"))
    return load_checkpoint(saved[-1])["global_step"] if saved else 0


def reached_step(folder: Path) -> int:
    """How far it came, by its table."""
    tables = sorted(folder.glob("outputs/*/*/metrics.csv"))
    rows = read_rows(tables[-1]) if tables else []
    whole = [row for row in rows if None not in row.values()]  # the last one may be torn
    return int(whole[-1]["step"]) if whole else 0


def check(ended: Finished, code: int, report: Kills) -> None:
    """Note a wrong exit code, or a traceback."""
    if wrong := told(ended, code):
        report.failures.append(wrong)


def way_on(folder: Path, argv: Sequence[str], chance: random.Random, report: Kills) -> list[str]:
    """The command that goes on, chosen at random among those that a user has."""
    unfinished = [path.parents[1] for path in folder.glob("outputs/*/*/checkpoints/last.ckpt")]
    if list(folder.glob("outputs/*/*")) and not unfinished:
        report.from_nothing += 1
    if not unfinished or chance.random() < 0.5:
        return [*argv, "resume=auto"]
    return [f"resume={max(unfinished)}", f"trainer.steps_per_execution={chance.choice((1, 2, 5, 'auto'))}"]
