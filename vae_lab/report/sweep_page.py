"""The page of a sweep: every job, means over seeds, what matters, and the rate-distortion front with its pictures."""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig

from vae_lab.report import sweep_figures as figures
from vae_lab.report.page import render, write_file
from vae_lab.report.sweep_importance import importance
from vae_lab.report.sweep_jobs import STATES, Job, read_jobs
from vae_lab.report.sweep_study import open_study_of, with_trials
from vae_lab.report.sweep_table import (
    NOTHING,
    Group,
    Sweep,
    compare,
    count_text,
    csv_path,
    duration,
    mean_text,
    number_text,
    print_tables,
    shown,
    words_text,
    write_csv,
)

PICTURES = {"samples": "samples of the prior", "reconstructions": "images and their reconstructions"}
MAX_POINTS, MAX_BYTES = 12, 7_000_000  # of pictures: a page stays below 15 MB with Plotly and base64
QUANTITIES = {  # titles of columns by metric
    f"{split}/{name}": f"{split} {title}"
    for split in ("val", "test")
    for name, title in (("elbo", "ELBO"), ("kl", "rate"), ("log_px", "distortion"))
}


class FrontPoint(NamedTuple):
    """A point of the front with its pictures, by name; None: the run has none."""

    point: figures.Point
    words: str
    pictures: dict[str, Path | None]


def sweep_page(config: DictConfig) -> str:
    """The page of the sweep or the search at `config.sweep`; prints its tables and writes sweep.csv.

    UsageError: no such sweep, or the jobs have no metric in common.
    """
    folder = Path(config.sweep)
    jobs, study = read_jobs(folder), open_study_of(folder)
    sweep = compare(folder, jobs if study is None else with_trials(jobs, study), config.metric)
    print_tables(sweep)
    table = csv_path(config)
    write_file(table, write_csv(sweep))
    sys.stdout.write(f"{table}: {len(sweep.jobs)} jobs\n")
    count = Counter(job.status for job in sweep.jobs)
    return render(
        "sweep.html",
        folder=folder.resolve(),
        sweep=sweep,
        states=[f"{count[state]} {state}" for state in STATES if count[state]],
        time=time.strftime("%Y-%m-%d %H:%M"),
        again=command(sweep.scored[0]) if sweep.scored else None,
        table=job_table(sweep),
        groups=group_table(sweep),
        coordinates=figures.parallel_coordinates(sweep) if len(sweep.scored) > 1 and sweep.keys else None,
        **importance_section(sweep, study),
        **front_section(sweep),
    )


def command(job: Job) -> str:
    return f"python -m vae_lab.train {shlex.join(job.words)}"


def job_table(sweep: Sweep) -> dict[str, Any]:
    """Titles and rows of text: the metric, ELBO, rate and distortion of both splits, costs."""
    columns = {sweep.metric: QUANTITIES.get(sweep.metric, sweep.metric)} | QUANTITIES
    present = {name: title for name, title in columns.items() if any(name in job.metrics for job in sweep.jobs)}
    rows = [
        {
            "job": job.name,
            "values": [shown(job.value(key)) for key in sweep.keys],
            "numbers": [*(metric_text(job.metrics.get(name), name) for name in present), *cost_texts(job)],
            "status": job.status,
        }
        for job in sweep.jobs
    ]
    return {"titles": [*present.values(), "parameters", "images/s", "time"], "rows": rows}


def metric_text(value: float | None, name: str) -> str:
    """The distortion is minus log p(x|z)."""
    return number_text(-value if value is not None and name.endswith("/log_px") else value, name)


def cost_texts(job: Job) -> list[str]:
    costs = [job.costs.get(name) for name in ("num_parameters", "images_per_second")]
    return [*(NOTHING if cost is None else f"{cost:,.0f}" for cost in costs), duration(job.costs.get("seconds"))]


def group_table(sweep: Sweep) -> dict[str, Any] | None:
    """Means over seeds and their standard errors; None: there is one seed."""
    if not (groups := sweep.groups()):
        return None
    others = [name for name in QUANTITIES if name != sweep.metric and any(group.mean(name) for group in groups)]
    rows = []
    for group in groups:
        mean, *texts = [group_text(group, name) for name in (sweep.metric, *others)]
        rows.append({"values": [*map(shown, group.values)], "numbers": [mean, count_text(group), *texts]})
    titles = [QUANTITIES.get(sweep.metric, sweep.metric), "jobs", *(QUANTITIES[name] for name in others)]
    return {"titles": titles, "rows": rows}


def group_text(group: Group, name: str) -> str:
    """As `metric_text`."""
    mean = group.mean(name)
    return mean_text((-mean[0], mean[1]) if mean is not None and name.endswith("/log_px") else mean, name)


def importance_section(sweep: Sweep, study: Any) -> dict[str, Any]:
    found = importance(sweep, study)
    return {"method": found.method, "importances": figures.importance_bars(found) if found.values else None}


def front_section(sweep: Sweep) -> dict[str, Any]:
    """The plane of rate and distortion, of the validation split where there is one, and the points of its front."""
    split = "val" if figures.points(sweep.jobs, "val") else "test"
    found = figures.points(sweep.jobs, split)
    front = figures.pareto_front(found)
    plane = figures.rate_distortion(found, front, sweep.keys) if found else None
    return {"split": split, "plane": plane, "front_size": len(front), "front": shown_points(front, sweep.keys)}


def shown_points(front: Sequence[figures.Point], keys: Sequence[str]) -> list[FrontPoint]:
    """The points, or as many of them, evenly chosen, as have room on the page."""
    for count in range(min(len(front), MAX_POINTS), 0, -1):
        chosen = [front[i] for i in np.linspace(0, len(front) - 1, count).round().astype(int)]
        found = [FrontPoint(point, words_text(point.job, keys), pictures_of(point.job)) for point in chosen]
        if sum(path.stat().st_size for it in found for path in it.pictures.values() if path) <= MAX_BYTES:
            return found
    return []


def pictures_of(job: Job) -> dict[str, Path | None]:
    paths = {name: job.folder / "images" / f"{name}.png" for name in PICTURES}
    return {name: path if path.is_file() else None for name, path in paths.items()}
