"""What varies in a sweep, its jobs best first, means over seeds, and the tables of it: CSV and terminal."""

from __future__ import annotations

import csv
import io
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vae_lab.config.schema import LOWER_IS_BETTER
from vae_lab.report.sweep_jobs import COSTS, STATES, Job
from vae_lab.runs.stored_config import MOVABLE
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import as_number

SEED = "seed"
NOT_COMPARED = (SEED, "name", "resume", "trusted", "sweep.resume", *MOVABLE)  # keys of the config
NOTHING = "–"  # noqa: RUF001
MAX_NAMED = 5  # jobs in a message
OTHERS = ("val/kl", "val/log_px", "test/elbo")  # metrics that the terminal shows


class Group(NamedTuple):
    """Jobs that differ only in their seeds."""

    values: tuple[str, ...]  # of Sweep.choices
    jobs: list[Job]  # all
    scored: list[Job]  # those that are completed and have the metric

    def mean(self, name: str) -> tuple[float, float] | None:
        """The mean of a metric over the scored jobs and its standard error, nan for one job; None: no job has it."""
        found = [job.metrics[name] for job in self.scored if name in job.metrics]
        if not found:
            return None
        error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
        return statistics.fmean(found), error


class Sweep(NamedTuple):
    """Jobs, best first, and what they are compared by."""

    folder: Path
    jobs: list[Job]  # completed, running, ... as in STATES, each by the metric
    metric: str
    keys: list[str]  # those that vary, the seed last
    constant: dict[str, str]  # overrides that all jobs have

    @property
    def sign(self) -> int:
        """1: lower is better; -1: higher."""
        return 1 if self.metric.endswith(LOWER_IS_BETTER) else -1

    @property
    def choices(self) -> list[str]:
        """The keys that vary, without the seed."""
        return [key for key in self.keys if key != SEED]

    @property
    def scored(self) -> list[Job]:
        """The completed jobs that have the metric, best first."""
        return [job for job in self.jobs if job.status == "completed" and self.metric in job.metrics]

    def groups(self) -> list[Group]:
        """By the mean of the metric, best first, those without it last; none, if all jobs have the same seed."""
        members: dict[tuple[str, ...], list[Job]] = {}
        for job in self.jobs if SEED in self.keys else ():
            members.setdefault(tuple(canonical(job.value(key)) for key in self.choices), []).append(job)
        scored = set(map(id, self.scored))
        groups = [
            Group(tuple(jobs[0].value(key) for key in self.choices), jobs, [job for job in jobs if id(job) in scored])
            for jobs in members.values()
        ]
        return sorted(groups, key=lambda it: self.sign * mean[0] if (mean := it.mean(self.metric)) else math.inf)


def compare(folder: Path, jobs: Sequence[Job], metric: str | None) -> Sweep:
    """Rank the jobs by a metric, or by the one that they optimise. UsageError: they have several, or not this one."""
    metric = metric or optimized_metric(jobs)
    names = list(dict.fromkeys(name for job in jobs for name in job.metrics))
    if metric not in names and metric.replace("val/", "test/") in names:  # data.val_size=0
        metric = metric.replace("val/", "test/")
    if names and metric not in names:
        found = ", ".join(name for name in names if not name.startswith("kl/dim_"))
        raise UsageError(f"metric={metric}: no job has it\nexpected one of {found}")
    keys = varied_keys(jobs)
    ranked = Sweep(folder, [], metric, keys, constant_overrides(jobs, keys))
    order = {id(job): rank(job, metric, ranked.sign) for job in jobs}
    return ranked._replace(jobs=sorted(jobs, key=lambda job: order[id(job)]))


def rank(job: Job, metric: str, sign: int) -> tuple[int, float]:
    return STATES.index(job.status), sign * job.metrics[metric] if metric in job.metrics else math.inf


def optimized_metric(jobs: Sequence[Job]) -> str:
    """UsageError: that of one job is not that of another."""
    names: dict[str, list[str]] = {}
    for job in jobs:
        if metric := job.value("optimized_metric"):
            names.setdefault(metric, []).append(job.name)
    if len(names) > 1:
        found = "\n".join(
            f"{metric}: job {', '.join(jobs[:MAX_NAMED])}{', ...' if len(jobs) > MAX_NAMED else ''}"
            for metric, jobs in names.items()
        )
        raise UsageError(f"the jobs have different optimized metrics\n{found}\nchoose one: metric={next(iter(names))}")
    return next(iter(names), "val/elbo")


def varied_keys(jobs: Sequence[Job]) -> list[str]:
    """Keys of overrides that differ, then keys of configs that differ between jobs of the same overrides."""
    keys = [key for key in dict.fromkeys(key for job in jobs for key in job.overrides) if _differs(jobs, key)]
    alike: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        if job.config:
            alike.setdefault(tuple(canonical(job.value(key)) for key in keys if key != SEED), []).append(job)
    hidden = dict.fromkeys(key for group in alike.values() for key in group[0].config if _differs(group, key))
    keys += [key for key in hidden if key not in NOT_COMPARED and not key.startswith(tuple(f"{it}." for it in keys))]
    return sorted(keys, key=lambda key: key == SEED)


def _differs(jobs: Sequence[Job], key: str) -> bool:
    return len({canonical(job.value(key)) for job in jobs if job.has(key)}) > 1


def canonical(value: str) -> str:
    """The same text for the same number: 1e-3 and 0.001."""
    number = as_number(value)
    return value if number is None else repr(number)


def constant_overrides(jobs: Sequence[Job], keys: Sequence[str]) -> dict[str, str]:
    longest = max((job.overrides for job in jobs), key=len)
    return {key: value for key, value in longest.items() if key not in keys}


def write_csv(sweep: Sweep) -> bytes:
    """A row per job, best first: what varies, every metric and cost."""
    names = dict.fromkeys([sweep.metric, *(name for job in sweep.jobs for name in job.metrics)])
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["job", "status", *sweep.keys, *names, *COSTS, "error"])
    for job in sweep.jobs:
        numbers = [*map(job.metrics.get, names), *map(job.costs.get, COSTS)]
        writer.writerow([job.name, job.status, *map(job.value, sweep.keys), *numbers, job.error])
    return text.getvalue().encode()


def print_tables(sweep: Sweep) -> None:
    """Means over seeds, the jobs best first, and the failed ones with the first lines of their errors."""
    console = Console(width=None if sys.stdout.isatty() else 160)  # no wrapping in a file
    means = [
        [mean_text(group.mean(sweep.metric), sweep.metric), count_text(group), *map(shown, group.values)]
        for group in sweep.groups()
    ]
    _print(console, [sweep.metric, "jobs", *sweep.choices], means)
    others = [it for it in OTHERS if it != sweep.metric and any(it in job.metrics for job in sweep.jobs)]
    rows = [
        [
            number_text(job.metrics.get(sweep.metric), sweep.metric),
            *(shown(job.value(key)) for key in sweep.keys),
            *(number_text(job.metrics.get(name), name) for name in others),
            duration(job.costs.get("seconds")), job.status, job.name,
        ]
        for job in sweep.jobs
        if job.status != "failed"
    ]  # fmt: skip
    _print(console, [sweep.metric, *sweep.keys, *others, "time", "", "job"], rows)
    for job in sweep.jobs:
        if job.status == "failed":
            reason = job.error.partition("\n")[0]
            sys.stdout.write(f"failed: job {job.name} ({words_text(job, sweep.keys)})\n  {reason}\n")


def _print(console: Console, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number else "right", no_wrap=not number, overflow="fold")
    for row in rows:
        table.add_row(*row)
    if rows:
        console.print(table, highlight=False, markup=False)
        console.print()


def count_text(group: Group) -> str:
    """How many jobs a mean is of."""
    n, missing = len(group.scored), len(group.jobs) - len(group.scored)
    return f"{n} ({missing} missing)" if missing else str(n)


def mean_text(mean: tuple[float, float] | None, name: str) -> str:
    """A mean and its standard error to two digits of the latter; without one, the mean alone."""
    if mean is None:
        return NOTHING
    value, error = mean
    if not error > 0:  # one job, or equal ones
        return number_text(value, name) + (f" ± {number_text(0.0, name)}" if error == 0 else "")
    digits = min(max(1 - math.floor(math.log10(error)), 0), 6)
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"


def number_text(value: float | None, name: str = "") -> str:
    digits = 4 if name.endswith("bits_per_dim") else 2
    return NOTHING if value is None else f"{value:,.{digits}f}"


def shown(value: str) -> str:
    """The value of an override, a number to four digits."""
    number = as_number(value)
    return value if number is None or len(value) < 8 or number == int(number) else f"{number:.4g}"


def words_text(job: Job, keys: Sequence[str]) -> str:
    """The overrides of a job that vary, numbers to four digits."""
    return " ".join(f"{key}={shown(job.value(key))}" for key in keys if job.value(key))


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.0f} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"


def csv_path(config: DictConfig) -> Path:
    """sweep.csv beside the page; for a page of another name, the table has its name."""
    return Path(config.out).with_suffix(".csv") if config.out else Path(config.sweep, "sweep.csv")
