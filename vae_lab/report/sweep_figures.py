"""Plotly figures of a sweep: parallel coordinates, importances, and the plane of rate and distortion."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from vae_lab.report.sweep_importance import Importance
from vae_lab.report.sweep_jobs import Job
from vae_lab.report.sweep_table import Sweep, shown
from vae_lab.utils.files import as_number

WORST, BEST, LINE = "#5b84b1", "#f28e2b", "rgba(128,128,128,.6)"  # seen on white and on black
LOG_RATIO = 20  # of the largest to the smallest value of a logarithmic axis
MAX_TICKS = 8  # values that each have their tick
NUM_LINES = 7  # of equal ELBO


class Figure(NamedTuple):
    """What Plotly draws, for `plot` of plots.js."""

    traces: list[dict[str, Any]]
    layout: dict[str, Any]


class Point(NamedTuple):
    """A job in the plane of rate and distortion, nats per image."""

    job: Job
    rate: float
    distortion: float


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last parts of each key, as many as tell it from the others."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        names[key] = next(end for end in ends if sum(f".{it}".endswith(f".{end}") for it in keys) == 1)
    return names


def parallel_coordinates(sweep: Sweep) -> Figure:
    """A line per completed job through the values of its keys and its metric."""
    jobs, names = sweep.scored[::-1], short_names(sweep.keys)  # the best is drawn last
    values = [job.metrics[sweep.metric] for job in jobs]
    axes = [axis(names[key], [job.value(key) for job in jobs]) for key in sweep.keys]
    line = {
        "color": values, "colorscale": [[0, WORST], [1, BEST]], "reversescale": sweep.sign > 0, "showscale": False,
    }  # fmt: skip
    trace = {
        "type": "parcoords", "dimensions": [*axes, {"label": sweep.metric, "values": values}], "line": line,
        "labelfont": {"size": 13}, "tickfont": {"size": 12}, "rangefont": {"size": 1, "color": "rgba(0,0,0,0)"},
    }  # fmt: skip
    return Figure([trace], {"margin": {"t": 75, "b": 20, "l": 70, "r": 70}})


def axis(label: str, values: Sequence[str]) -> dict[str, Any]:
    """A dimension of parallel coordinates: numbers, logarithms of numbers, or categories."""
    numbers = [number for value in values if (number := as_number(value)) is not None]
    if len(numbers) < len(values):
        names = sorted(set(values), key=lambda name: re.sub(r"\d+", lambda digits: digits[0].zfill(9), name))
        return {
            "label": label, "values": [names.index(value) for value in values],
            "tickvals": list(range(len(names))), "ticktext": [name or "(none)" for name in names],
            **wide(0, len(names) - 1),
        }  # fmt: skip
    low, high, different = min(numbers), max(numbers), sorted(set(numbers))
    is_log = low > 0 and high / low >= LOG_RATIO
    ticks = different if len(different) <= MAX_TICKS else nice_values(low, high, is_log)
    scale = math.log10 if is_log else float
    positions = [scale(tick) for tick in ticks]
    if min(np.diff(positions), default=1) < 0.04 * (positions[-1] - positions[0]):  # labels would overlap
        ticks = nice_values(low, high, is_log)
        positions = [scale(tick) for tick in ticks]
    text = [f"{tick:g}" for tick in ticks]
    return {
        "label": f"{label} (log)" if is_log else label, "values": [scale(number) for number in numbers],
        "tickvals": positions, "ticktext": text, **wide(scale(low), scale(high)),
    }  # fmt: skip


def wide(low: float, high: float) -> dict[str, list[float]]:
    """A range for one value alone."""
    return {"range": [low, high] if high > low else [low - 1, high + 1]}


def nice_values(low: float, high: float, is_log: bool) -> list[float]:
    """Round numbers between two."""
    locator = LogLocator(subs=(1, 2, 5) if high / low < 1e3 else (1,)) if is_log else MaxNLocator(5)
    return [float(value) for value in locator.tick_values(low, high) if low <= value <= high]


def importance_bars(found: Importance) -> Figure:
    keys = list(found.values)[::-1]  # Plotly draws from below
    errors = {"type": "data", "array": [found.errors[key] for key in keys], "color": LINE} if found.errors else {}
    bars = {
        "type": "bar", "orientation": "h", "x": [found.values[key] for key in keys], "y": keys, "error_x": errors,
        "marker": {"color": WORST}, "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
    }  # fmt: skip
    return Figure([bars], {"margin": {"t": 35, "b": 40, "l": 20, "r": 15}, "xaxis": {"rangemode": "tozero"}})


def points(jobs: Sequence[Job], split: str) -> list[Point]:
    """The jobs that have rate and distortion on a split."""
    rate, log_px = f"{split}/kl", f"{split}/log_px"
    return [Point(it, it.metrics[rate], -it.metrics[log_px]) for it in jobs if {rate, log_px} <= it.metrics.keys()]


def pareto_front(found: Sequence[Point]) -> list[Point]:
    """The completed jobs that no other beats in both, by rate."""
    front: list[Point] = []
    for point in sorted(found, key=lambda it: (it.rate, it.distortion)):
        if point.job.status == "completed" and (not front or point.distortion < front[-1].distortion):
            front.append(point)
    return front


def rate_distortion(found: Sequence[Point], front: Sequence[Point], keys: Sequence[str]) -> Figure:
    """The jobs, their front, and lines of equal ELBO: minus rate minus distortion."""
    (x0, x1), (y0, y1) = ranges([it.rate for it in found]), ranges([it.distortion for it in found])
    sums = MaxNLocator(NUM_LINES).tick_values(x0 + y0, x1 + y1)
    lines: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    for total in map(float, sums):
        left, right = max(x0, total - y1), min(x1, total - y0)
        if left < right:
            lines.append(
                {
                    "x": [left, right], "y": [total - left, total - right], "mode": "lines", "hoverinfo": "skip",
                    "line": {"color": LINE, "width": 1, "dash": "dot"}, "showlegend": False,
                }
            )  # fmt: skip
            where = {"x": left, "y": total - left, "xanchor": "left", "yanchor": "top" if left > x0 else "bottom"}
            labels.append({**where, "text": f"{-total:g}", "showarrow": False, "font": {"size": 11, "color": "gray"}})
    others = [it for it in found if it not in front]
    traces = [
        *lines,
        _markers([it for it in others if it.job.status == "completed"], keys, "jobs", color=WORST, size=8),
        _markers([it for it in others if it.job.status != "completed"], keys, "not completed", color=WORST,
                 symbol="circle-open", size=8),
        _markers(front, keys, "front", color=BEST, size=11) | {"mode": "lines+markers", "line": {"color": BEST}},
    ]  # fmt: skip
    layout = {
        "annotations": labels, "hovermode": "closest", "legend": {"orientation": "h", "y": -0.15},
        "xaxis": {"title": {"text": "rate: KL, nats per image"}, "range": [x0, x1]},
        "yaxis": {"title": {"text": "distortion: −log p(x|z), nats per image"}, "range": [y0, y1]},  # noqa: RUF001
    }  # fmt: skip
    return Figure([trace for trace in traces if trace["x"]], layout)


def ranges(values: Sequence[float]) -> tuple[float, float]:
    """The values with a margin."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(low) or 1.0
    return low - margin, high + margin


def _markers(found: Sequence[Point], keys: Sequence[str], name: str, **marker: Any) -> dict[str, Any]:
    return {
        "x": [it.rate for it in found], "y": [it.distortion for it in found], "mode": "markers", "name": name,
        "marker": marker, "text": [hover_text(it, keys) for it in found], "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip


def hover_text(point: Point, keys: Sequence[str]) -> str:
    job, elbo = point.job, -point.rate - point.distortion
    status = "" if job.status == "completed" else f", {job.status}"
    lines = [f"job {job.name}{status}", *(f"{key}={shown(job.value(key))}" for key in keys)]
    lines.append(f"rate {point.rate:.2f}, distortion {point.distortion:.2f}, ELBO {elbo:.2f}")
    return "<br>".join(html.escape(line, quote=False) for line in lines)
