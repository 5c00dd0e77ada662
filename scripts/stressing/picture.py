"""The sessions of a run that was killed, under the curve that it ended with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from scripts.stressing.kills import Session
from vae_lab.callbacks.metrics_csv import read_rows

COLOURS = {"SIGKILL": "#c0392b", "SIGTERM": "#d68910", "SIGUSR1": "#7d3c98", "SIGINT": "#2471a3", "": "#1e8449"}


def draw(path: Path, table: Path, sessions: Sequence[Session]) -> None:
    """Above val/elbo of the run that was never killed, to which the killed one is equal; below a bar a process."""
    rows = read_rows(table)
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(9, 4.4), dpi=110, layout="constrained")
    curve, bars = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    curve.plot(steps, [float(row["val/elbo"]) for row in rows], color="#1e8449", linewidth=1.6)
    curve.set_ylabel("val/elbo, nats per image")
    curve.set_title("One run in several processes; its curve, weights and files equal those of a run never killed",
                    fontsize=10, loc="left")  # fmt: skip
    for number, session in enumerate(sessions):
        colour = COLOURS[session.ended_by]
        bars.barh(number, max(session.reached - session.first, 2), left=session.first, color=colour, height=0.6)
        bars.annotate(session.ended_by or "completed", (session.reached, number), (5, 0), textcoords="offset points",
                      va="center", fontsize=8, color=colour)  # fmt: skip
        if session.first:
            for axes in (curve, bars):
                axes.axvline(session.first, color="0.75", linewidth=0.8, zorder=0)
    bars.set_yticks(range(len(sessions)), [f"process {number + 1}" for number in range(len(sessions))], fontsize=8)
    bars.invert_yaxis()
    bars.set_xlabel("optimiser step; a line where a process went on from the last checkpoint")
    bars.set_xlim(0, steps[-1] * 1.12)
    figure.savefig(path)
