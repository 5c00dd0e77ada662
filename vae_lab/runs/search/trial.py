"""A trial of a search: `python -m vae_lab.train` in a process of its own, which ends with the search's.

The processes are forked from one that has imported the heavy libraries, so a trial starts at once.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import re
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

from vae_lab.runs.resume import LAST_CHECKPOINT, read_summary
from vae_lab.runs.stored_config import MOVABLE, OVERRIDABLE_ON_RESUME
from vae_lab.utils.errors import RunFailed

HEAVY = ("torch", "lightning.pytorch", "matplotlib.figure", "tensorboard", "torch.utils.tensorboard",
         "vae_lab.fit_prior", "vae_lab.callbacks.run_summary", "vae_lab.second_stage.prior_fit")  # fmt: skip
OUTPUT = "output.txt"  # what a trial prints; removed if it completes
POLL, PATIENCE = 0.5, 30.0  # seconds: between looks at the metrics, and for a stopped run to be saved


def run_trial(
    words: Sequence[str], run: Path, metric: str, report: Callable[[int, float], bool], pause: Callable[[], None]
) -> float | None:
    """Train, or resume, the run directory `run` and return its `metric`; None if it was stopped as hopeless.

    report: whether the run is hopeless, by the epoch and the metric on the validation split; called after each
    validation. pause: called often; what it raises stops the run, with a checkpoint. RunFailed: as the run.
    """
    if read_summary(run).get("status") != "completed":
        run.mkdir(parents=True, exist_ok=True)
        output = run / OUTPUT
        process = _context().Process(target=_train, args=(_request(words, run), output))  # type: ignore[attr-defined]
        process.start()
        try:
            if _is_hopeless(process, run / "metrics.csv", metric.replace("test/", "val/"), report, pause):
                return None
        finally:
            _stop(process)
        if process.exitcode:
            raise RunFailed(error_of(output, process.exitcode))
        output.unlink(missing_ok=True)
    summary = read_summary(run)
    values = summary.get("metrics", {}) | summary.get("best_metrics", {})
    value = values.get(metric, values.get(metric.replace("val/", "test/")))
    if value is None:
        raise RunFailed(f"the run has no finite {metric}")
    return float(value)


def key_of(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _request(words: Sequence[str], run: Path) -> list[str]:
    """The overrides of a new run, or those to resume it with: of another worker, whose data may lie elsewhere."""
    if not (run / LAST_CHECKPOINT).is_file():
        return [*words, f"hydra.run.dir={run}"]
    of_worker = [word for word in words if re.match(rf"({'|'.join(OVERRIDABLE_ON_RESUME)})\b", key_of(word))]
    return [*of_worker, *(word for word in words if key_of(word) in MOVABLE), f"resume={run}", "trusted=true"]


def _context() -> BaseContext:
    chosen = multiprocessing.get_start_method(allow_none=True)  # by a program that this is a part of
    context = multiprocessing.get_context(chosen or ("forkserver" if os.name == "posix" else "spawn"))
    context.set_forkserver_preload(list(HEAVY))
    return context


def _is_hopeless(
    process: BaseProcess, table: Path, name: str, report: Callable[[int, float], bool], pause: Callable[[], None]
) -> bool:
    """Whether a report says so before the process ends: of the new rows of metrics.csv, again and again."""
    seen, running = 0, True
    while running:
        process.join(POLL)
        running = process.is_alive()  # before the last look
        pause()
        rows = whole_rows(table)
        for row in rows[seen:]:
            if row.get(name) and report(int(row["epoch"]), float(row[name])) and running:
                return True
        seen = len(rows)
    return False


def whole_rows(table: Path) -> list[dict[str, str]]:
    """The rows of the metrics.csv of a run that is writing it: the last line may not be whole."""
    text = table.read_text(errors="replace") if table.exists() else ""
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def _stop(process: BaseProcess) -> None:
    if process.is_alive():
        process.terminate()
        process.join(PATIENCE)
        process.kill()
    process.join()


def error_of(output: Path, code: int = 1) -> str:
    """The message of a run that failed, from what it has printed."""
    text = output.read_text(errors="replace").strip()
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return text.rpartition("error: ")[2] if "error: " in text else (text.splitlines() or [f"exit code {code}"])[-1]


def _train(words: Sequence[str], output: Path) -> None:
    """`python -m vae_lab.train WORDS`, in the child process."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if os.name == "posix":
        os.setsid()  # a Ctrl-C on the terminal is for the search, which stops the run
    with output.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    GlobalHydra.instance().clear()
    sys.argv = ["vae_lab.train", *words]
    runpy.run_module("vae_lab.train", run_name="__main__", alter_sys=True)


def _stop_with_parent() -> None:
    """A killed search leaves no process behind: the run is saved, and another worker resumes it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
