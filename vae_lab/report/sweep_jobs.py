"""The jobs of a sweep, or the trials of a search, from their run directories alone, also while they run."""

from __future__ import annotations

import itertools
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from vae_lab.config.schema import LOWER_IS_BETTER
from vae_lab.runs.resume import CONFIG_FILE, is_locked, read_summary
from vae_lab.runs.search.trial import OUTPUT, error_of, key_of, whole_rows
from vae_lab.runs.sweep import SWEEP_FILE
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import as_number

STATES = ("completed", "running", "interrupted", "pruned", "queued", "failed")  # in the order of the tables
COSTS = ("num_parameters", "images_per_second", "seconds", "epochs", "steps")  # keys of summary.json
FRESH = 60.0  # seconds; a running job saves its checkpoint more often, also where its lock is not seen: on a cluster
SWEPT_BY_HYDRA = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class Job(NamedTuple):
    """A run directory of a sweep, or a job of it that has none yet."""

    name: str  # the directory below that of the sweep
    folder: Path
    status: str  # one of STATES
    words: tuple[str, ...] = ()  # its overrides
    config: Mapping[str, str] = {}  # the values of .hydra/config.yaml by dotted key
    metrics: Mapping[str, float] = {}  # those of the best weights; so far, of a running job
    costs: Mapping[str, float] = {}  # those of COSTS that are known
    error: str = ""

    @property
    def overrides(self) -> dict[str, str]:
        return {key_of(word): "(removed)" if word.startswith("~") else word.partition("=")[2] for word in self.words}

    def has(self, key: str) -> bool:
        """Whether its value of a key is known: of a refused trial, only the study knows some."""
        return bool(self.config) or self.status == "queued" or key in self.overrides

    def value(self, key: str) -> str:
        """The value of an override or, without one, of the config; empty: neither has it."""
        return self.overrides.get(key, self.config.get(key, ""))


def read_jobs(sweep: Path) -> list[Job]:
    """All jobs by number, the queued ones last. UsageError: not the directory of a sweep or a search."""
    if not sweep.is_dir():
        raise UsageError(f"sweep={sweep}: no such folder\nexpected a sweep, such as outputs/sweeps/DATE_TIME")
    if (sweep / CONFIG_FILE).is_file():
        raise UsageError(f"sweep={sweep}: a single run\npython -m vae_lab.report {shlex.quote(str(sweep))}")
    runs = {file.parents[1] for file in sweep.rglob(str(CONFIG_FILE))}
    runs |= {file.parent for file in sweep.glob(f"*/{OUTPUT}")}  # trials that were refused
    started = [read_job(run, sweep) for run in sorted(runs, key=lambda run: _number(run.relative_to(sweep)))]
    jobs = [*started, *queued_jobs(sweep, {job.words for job in started})]
    if not jobs:
        raise UsageError(f"sweep={sweep}: there is no run in it\nexpected a sweep, such as outputs/sweeps/DATE_TIME")
    return jobs


def _number(path: Path) -> list[tuple[int, str]]:
    return [(len(part) if part.isdecimal() else 0, part) for part in path.parts]


def read_job(run: Path, sweep: Path) -> Job:
    """A job that was started."""
    summary = read_summary(run)
    config = dict(flat(read_yaml(run / CONFIG_FILE)))
    words = read_yaml(run / CONFIG_FILE.with_name("overrides.yaml"))
    status, error = status_of(run, summary)
    metrics = {**numbers(summary.get("metrics")), **numbers(summary.get("best_metrics"))}
    if status == "running" or not metrics:
        metrics = best_row(run / "metrics.csv", config.get("optimized_metric", ""))
    return Job(
        str(run.relative_to(sweep)), run, status, tuple(map(str, words if isinstance(words, list) else ())), config,
        metrics, {name: value for name, value in numbers(summary).items() if name in COSTS}, error,
    )  # fmt: skip


def status_of(run: Path, summary: Mapping[str, Any]) -> tuple[str, str]:
    """The state of a job that was started, and its error."""
    status = summary.get("status")
    if status == "completed":
        return status, ""
    if is_locked(run):
        return "running", ""
    if status in ("interrupted", "failed"):
        return status, str(summary.get("error", ""))
    if (run / "summary.json").is_file():
        return "failed", "summary.json cannot be read"
    if is_refused_trial(run):
        return "failed", error_of(run / OUTPUT)
    written = [path.stat().st_mtime for path in (run, run / "metrics.csv", run / "checkpoints") if path.exists()]
    return ("running" if time.time() - max(written) < FRESH else "interrupted"), ""


def is_refused_trial(run: Path) -> bool:
    """Whether a search's trial has failed before it was a run: all that it leaves is what it has printed."""
    output = run / OUTPUT
    return not (run / CONFIG_FILE).is_file() and output.is_file() and "error: " in output.read_text(errors="replace")


def queued_jobs(sweep: Path, started: set[tuple[str, ...]]) -> list[Job]:
    """Those that Hydra has not started, of the command that multirun.yaml has stored."""
    request = dict(flat(read_yaml(sweep / SWEEP_FILE)))
    if request.get("hydra.sweeper._target_") != SWEPT_BY_HYDRA:
        return []
    stored = read_yaml(sweep / SWEEP_FILE)["hydra"]
    words = [*(f"{key}={value}" for key, value in (stored["sweeper"].get("params") or {}).items())]
    try:
        parsed = OverridesParser.create().parse_overrides([*words, *stored["overrides"]["task"]])
        choices = [
            [f"{it.get_key_element()}={value}" for value in it.sweep_string_iterator()]
            if it.is_sweep_override()
            else [f"{it.get_key_element()}={it.get_value_element_as_str()}"]
            for it in parsed
        ]
    except (HydraException, KeyError, TypeError, AttributeError, AssertionError):  # glob(*) needs Hydra's groups
        return []
    jobs = enumerate(itertools.product(*choices))
    return [Job(str(number), sweep / str(number), "queued", job) for number, job in jobs if job not in started]


def best_row(table: Path, metric: str) -> dict[str, float]:
    """The row of metrics.csv with the best value so far; the last one, if none has it."""
    rows, name = [numbers(row) for row in whole_rows(table)], metric.replace("test/", "val/")
    if scored := [row for row in rows if name in row]:
        return (min if name.endswith(LOWER_IS_BETTER) else max)(scored, key=lambda row: row[name])
    return rows[-1] if rows else {}


def numbers(values: Any) -> dict[str, float]:
    """The finite numbers among the values of a table's row or of summary.json."""
    found = {}
    for name, value in values.items() if isinstance(values, dict) else ():
        number = as_number(value)
        if number is not None and not isinstance(value, bool):
            found[str(name)] = number
    return found


def read_yaml(file: Path) -> Any:
    """The content of a file that Hydra has written; None if it is missing, or not whole."""
    try:
        return yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def flat(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The values of nested dicts by dotted key, as they are written on a command line."""
    items: Iterable[tuple[Any, Any]] = content.items() if isinstance(content, dict) else ()
    for key, value in items:
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            named = {None: "null", True: "true", False: "false"}
            yield f"{prefix}{key}", named[value] if value is None or isinstance(value, bool) else str(value)
