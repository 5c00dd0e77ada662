"""Measured training speeds as bars: a panel for each network, a bar for each side, a dot for each repeat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scripts.benchmarks.rows import Row, number
from vae_lab.figures.canvas import BLUE, FAINT, INK, MUTED, add_axes, blank_figure, fit_axes, render, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, BAR, GAP = 520, 26, 56  # pixels: a panel, the height of a bar, between panels
PART, UNIT, OURS = "training", "images/s", "vae_lab"


class Bar(NamedTuple):
    """One side's speed."""

    name: str
    median: float
    repeats: list[float]
    beside: str  # what is written after the number


def write_picture(path: Path, rows: Sequence[Row], machine: dict[str, Any]) -> bool:
    """Draw the speeds of training there; False where none was measured."""
    from PIL import Image

    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row.part == PART and row.unit == UNIT:
            panels.setdefault(row.what, []).append(row)
    if panels:
        figure = speeds(panels, f"{machine['cpu']}, {machine['threads']} threads")
        Image.fromarray(render(figure)).quantize(64).save(path, optimize=True)
    return bool(panels)


@styled
def speeds(panels: dict[str, list[Row]], where: str) -> Figure:
    """A panel for each network, one below the other."""
    figure = blank_figure()
    bottom = 0
    for what, rows in panels.items():
        bars = [Bar(OURS, rows[0].ours, rows[0].all_ours, "")]
        bars += [Bar(row.beside, row.theirs, row.all_theirs, _times(row)) for row in rows]
        bottom -= BAR * len(bars) + GAP
        axes = add_axes(figure, 0, bottom, WIDTH, BAR * len(bars))
        _draw(axes, bars)
        axes.set_title(f"{what}: images per second in training ({where})", loc="left")
    return fit_axes(axes)


def _times(row: Row) -> str:
    return f"     {OURS} / this = {row.ratio:.2f}" if row.ratio is not None else ""


def _draw(axes: Axes, bars: Sequence[Bar]) -> None:
    most = max(max(bar.repeats) for bar in bars)
    for at, bar in enumerate(bars):
        ours = bar.name == OURS
        axes.barh(at, bar.median, height=0.62, color=BLUE if ours else FAINT)
        axes.scatter(bar.repeats, [at] * len(bar.repeats), s=5, color=INK if ours else MUTED, linewidths=0, zorder=3)
        axes.text(max(bar.repeats) + 0.02 * most, at, number(bar.median) + bar.beside, va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.set(xlim=(0, 1.01 * most), ylim=(len(bars) - 0.5, -0.5))
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
