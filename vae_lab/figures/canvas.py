"""Figures on a canvas of whole pixels: one shared style, resized to their content so that nothing is cut off.

Matplotlib is imported where it is used, so importing this module is cheap. pyplot is not used: it would keep figures
alive and need a display.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")
Pixels = NDArray[np.uint8]  # (H, W, 3)

DPI = 128  # a power of two: pixels / DPI * DPI is exact, so a canvas has exactly the requested size
MARGIN = 12  # white pixels around the content

INK, MUTED, FAINT = "#22252b", "#6b7280", "#d5d9e0"
BLUE, ORANGE, GREEN = "#3b75af", "#e1812c", "#4f9d69"

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlepad": 9,
    "axes.labelsize": 8.5,
    "axes.labelpad": 6,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "mathtext.fontset": "dejavusans",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run `draw` with STYLE, whatever the user's matplotlibrc says."""

    @wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def blank_figure() -> Figure:
    """Empty figure with an Agg canvas; `fit` sets its size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=DPI, figsize=(8, 8), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: int, bottom: int, width: int, height: int) -> Axes:
    """Add axes over a rectangle of whole pixels, relative to an origin of the caller's choice."""
    figure_width, figure_height = figure.bbox.width, figure.bbox.height
    return figure.add_axes((left / figure_width, bottom / figure_height, width / figure_width, height / figure_height))


def fit(figure: Figure) -> Figure:
    """Resize the figure to its content; axes keep their size and stay on whole pixels."""
    old_width, old_height = figure.bbox.width, figure.bbox.height
    box = figure.get_tightbbox(_canvas(figure).get_renderer())
    right, up = math.ceil(MARGIN - box.x0 * DPI), math.ceil(MARGIN - box.y0 * DPI)
    width, height = math.ceil(box.x1 * DPI) + right + MARGIN, math.ceil(box.y1 * DPI) + up + MARGIN
    figure.set_size_inches(width / DPI, height / DPI)
    for axes in figure.axes:
        x, y, w, h = axes.get_position(original=True).bounds
        left, bottom = round(x * old_width) + right, round(y * old_height) + up
        axes.set_position((left / width, bottom / height, w * old_width / width, h * old_height / height))
    return figure


def fit_axes(axes: Axes) -> Figure:
    """Fit the figure that contains the axes."""
    return fit(cast("Figure", axes.figure))


def render(figure: Figure) -> Pixels:
    """Pixels of the figure, uint8 (H, W, 3)."""
    canvas = _canvas(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba(), np.uint8)[..., :3]


def _canvas(figure: Figure) -> Any:
    """The FigureCanvasAgg; Any, since its methods are untyped."""
    return figure.canvas
