"""Figures made of numbers: the latent scatter, KL per dimension, the aggregate posterior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from vae_lab.figures.canvas import BLUE, MUTED, ORANGE, add_axes, blank_figure, fit, fit_axes, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEGEND_ROWS = 20
MOST_CLASSES = 60  # beyond, a legend is longer than the plot
MOST_BARS = 64  # beyond, bars are too thin to compare and a histogram says more
PANELS, PANEL_COLUMNS = 12, 4


@styled
def latent_scatter(
    points: Tensor,
    labels: Tensor | None = None,
    class_names: Sequence[str] = (),
    *,
    xlabel: str = "$z_{0}$",
    ylabel: str = "$z_{1}$",
    title: str = "Posterior means",
    equal: bool = True,
) -> Figure:
    """Points (N, 2), coloured by labels (N,) where there are any, the classes named beside the plot.

    `equal`: both axes have one scale, so that distances can be compared.
    """
    axes = add_axes(blank_figure(), 0, 0, 640, 640)
    axes.set_aspect("equal" if equal else "auto", adjustable="datalim")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, loc="left")
    axes.grid(True)
    if labels is None:
        axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=9, color=BLUE, alpha=0.7, linewidths=0)
    else:
        _scatter_classes(axes, points, labels, class_names)
    return fit_axes(axes)


def _scatter_classes(axes: Axes, points: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
    classes = sorted(set(labels.tolist()))
    count = max(len(class_names), 1 + max(classes, default=0))
    colours = _class_colours(count)[labels.numpy()]
    # one call for all classes: drawn class by class, the last would hide the others where they overlap
    axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=9, c=colours, alpha=0.8, linewidths=0)
    if len(classes) > MOST_CLASSES:
        return
    for index in classes:
        name = class_names[index] if index < len(class_names) else str(index)
        axes.scatter([], [], s=28, color=_class_colours(count)[index], label=name)
    columns = math.ceil(len(classes) / LEGEND_ROWS)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), ncols=columns, title="class", handletextpad=0.2)


def _class_colours(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(count, 4), told apart at a glance up to 20 classes."""
    from matplotlib import colormaps

    if count > 20:
        return np.asarray(colormaps["gist_rainbow"](np.linspace(0, 1, count)))
    return np.asarray(colormaps["tab10" if count <= 10 else "tab20"](np.arange(count)))


@styled
def kl_per_dimension(kl: Tensor, *, threshold: float = 0.01, title: str = "KL of each latent dimension") -> Figure:
    """kl (D,) in nats as bars, the largest first; the dimensions below `threshold` are inactive."""
    values, order = kl.nan_to_num(0.0).sort(descending=True)
    active = int((values > threshold).sum())
    figure = blank_figure()
    axes = add_axes(figure, 0, 0, 820, 380)
    axes.bar(range(len(kl)), values.numpy(), width=0.8, color=[BLUE] * active + [MUTED] * (len(kl) - active))
    axes.axhline(threshold, color=ORANGE, linewidth=1, linestyle="--", label=f"active above {threshold:g} nats")
    axes.set(xlabel="latent dimension, largest KL first", ylabel="KL in nats per image")
    axes.set_title(f"{title}: {active} of {len(kl)} active, {float(values.sum()):.1f} nats in all", loc="left")
    axes.set_xlim(-0.7, len(kl) - 0.3)
    axes.legend(loc="upper right")
    _label_bars(axes, order.tolist())
    if len(kl) > MOST_BARS:
        _histogram_of_dimensions(figure, values)
    return fit(figure)


def _label_bars(axes: Axes, order: Sequence[int]) -> None:
    """The dimension below its bar; below every k-th where they would touch."""
    every = math.ceil(len(order) / 32)
    shown = range(0, len(order), every)
    axes.set_xticks(list(shown), [f"{order[index]}" for index in shown])


def _histogram_of_dimensions(figure: Figure, values: Tensor) -> None:
    axes = add_axes(figure, 0, -470, 820, 340)
    axes.hist(values.numpy(), bins=40, color=BLUE)
    axes.set(xlabel="KL in nats per image", ylabel="number of dimensions")
    axes.set_title("The same as a histogram", loc="left")


@styled
def aggregate_posterior(
    means: Tensor, samples: Tensor, *, title: str = "Aggregate posterior beside the standard normal"
) -> Figure:
    """Means and samples of q(z|x), (N, D) each: a panel for each of the dimensions whose means vary most."""
    dims = means.var(0, correction=0).argsort(descending=True)[:PANELS].tolist()
    figure = blank_figure()
    for index, dim in enumerate(dims):
        row, column = divmod(index, PANEL_COLUMNS)
        axes = add_axes(figure, column * 280, -row * 250, 230, 180)
        _density_panel(axes, means[:, dim], samples[:, dim])
        axes.set_xlabel(f"$z_{{{dim}}}$", labelpad=2)
        axes.set_ylabel("density" if column == 0 else "")
    shown = f": the {len(dims)} of {means.shape[1]} dimensions that vary most" if len(dims) < means.shape[1] else ""
    first = figure.axes[0]
    first.annotate(title + shown, (0, 1), (0, 44), "axes fraction", "offset pixels", size=10, weight="bold")
    first.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.3)
    return fit(figure)


def _density_panel(axes: Axes, means: Tensor, samples: Tensor) -> None:
    reach = max(4.0, float(samples.abs().max()))
    count = min(max(16, 2 * math.isqrt(len(samples))), 48)  # few samples in narrow bins are a comb
    bins = np.linspace(-reach, reach, count + 1).tolist()
    grid = torch.linspace(-reach, reach, 193)
    normal: Distribution = Normal(0.0, 1.0)
    filled: dict[str, Any] = {"density": True, "histtype": "stepfilled", "color": BLUE, "alpha": 0.4}
    density, *_ = axes.hist(samples.numpy(), bins, label="samples of q(z|x)", **filled)
    axes.hist(means.numpy(), bins, density=True, histtype="step", color=BLUE, label="means of q(z|x)")
    axes.plot(grid.numpy(), normal.log_prob(grid).exp().numpy(), color=ORANGE, linewidth=1.4, label="N(0, 1)")
    # the means of an unused dimension are a spike at 0: cut it rather than flatten everything else
    axes.set(xlim=(-reach, reach), ylim=(0, 1.15 * max(0.4, float(np.max(density)))))
    axes.locator_params(axis="y", nbins=3)
