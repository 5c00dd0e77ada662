"""Charts: latent scatter, KL per dimension and per layer, code usage, aggregate posterior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from vae_lab.figures.canvas import BLUE, MUTED, ORANGE, add_axes, blank_figure, fit, fit_axes, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEGEND_ROWS = 20
MAX_CLASSES = 60  # above this, the legend would be longer than the plot
MAX_BARS = 64  # above this, bars are too thin to compare and a histogram is added
PANELS, PANEL_COLUMNS = 12, 4
# Prior shown with a posterior; samples (M, D) unless it is N(0, 1)
PriorReference = Tensor | Literal["N(0, 1)"] | None


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
    """Scatter plot of points (N, 2), coloured by labels (N,) if given, with a legend of the classes.

    `equal`: both axes have the same scale, so that distances can be compared.
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
    # one call for all classes: plotted class by class, the last would hide the others where they overlap
    axes.scatter(points[:, 0].numpy(), points[:, 1].numpy(), s=9, c=colours, alpha=0.8, linewidths=0)
    if len(classes) > MAX_CLASSES:
        return
    for index in classes:
        name = class_names[index] if index < len(class_names) else str(index)
        axes.scatter([], [], s=28, color=_class_colours(count)[index], label=name)
    columns = math.ceil(len(classes) / LEGEND_ROWS)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), ncols=columns, title="class", handletextpad=0.2)


def _class_colours(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """RGBA (count, 4); easy to distinguish up to 20 classes."""
    from matplotlib import colormaps

    if count > 20:
        return np.asarray(colormaps["gist_rainbow"](np.linspace(0, 1, count)))
    return np.asarray(colormaps["tab10" if count <= 10 else "tab20"](np.arange(count)))


@styled
def kl_per_dimension(kl: Tensor, *, threshold: float = 0.01, title: str = "KL of each latent dimension") -> Figure:
    """Bar chart of kl (D,) in nats, largest first; dimensions below `threshold` are inactive."""
    values, order = kl.nan_to_num(0.0).sort(descending=True)
    active = int((values > threshold).sum())
    figure = blank_figure()
    axes = add_axes(figure, 0, 0, 820, 380)
    axes.bar(range(len(kl)), values.numpy(), width=0.8, color=[BLUE] * active + [MUTED] * (len(kl) - active))
    axes.axhline(threshold, color=ORANGE, linewidth=1, linestyle="--", label=f"active above {threshold:g} nats")
    axes.set(xlabel="latent dimension, largest KL first", ylabel="KL in nats per image")
    axes.set_title(f"{title}: {active} of {len(kl)} active, {float(values.sum()):.1f} nats in total", loc="left")
    axes.set_xlim(-0.7, len(kl) - 0.3)
    axes.legend(loc="upper right")
    _label_bars(axes, order.tolist())
    if len(kl) > MAX_BARS:
        _histogram_of_dimensions(figure, values)
    return fit(figure)


def _label_bars(axes: Axes, order: Sequence[int]) -> None:
    """Label bars by dimension; only every k-th bar if labels would overlap."""
    every = math.ceil(len(order) / 32)
    shown = range(0, len(order), every)
    axes.set_xticks(list(shown), [f"{order[index]}" for index in shown])


def _histogram_of_dimensions(figure: Figure, values: Tensor) -> None:
    axes = add_axes(figure, 0, -470, 820, 340)
    axes.hist(values.numpy(), bins=40, color=BLUE)
    axes.set(xlabel="KL in nats per image", ylabel="number of dimensions")
    axes.set_title("Histogram of the same values", loc="left")


@styled
def kl_per_layer(kl: Tensor, names: Sequence[str], *, title: str = "KL of each layer") -> Figure:
    """Bar chart of kl (L,) in nats, top of the hierarchy first; layers with the same name (a shape) share a colour."""
    axes = add_axes(blank_figure(), 0, 0, 820, 380)
    shapes = list(dict.fromkeys(names))
    colours = _class_colours(len(shapes))
    for index, shape in enumerate(shapes):
        layers = [layer for layer, name in enumerate(names) if name == shape]
        axes.bar(layers, kl.nan_to_num(0.0)[layers].numpy(), width=0.8, color=colours[index], label=shape)
    axes.set(xlabel="layer, top of the hierarchy first", ylabel="KL in nats per image")
    axes.set_title(f"{title}: {float(kl.nan_to_num(0.0).sum()):.1f} nats in total", loc="left")
    axes.set_xlim(-0.7, len(kl) - 0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), title="latent shape")
    _label_bars(axes, range(len(kl)))
    return fit_axes(axes)


@styled
def code_usage(counts: Sequence[Tensor], names: Sequence[str] = (), *, title: str = "Code usage") -> Figure:
    """counts: (G, K) for each layer, how often each of its G variables took each of K codes. names: of several layers.

    The perplexity, exp of the entropy, is the number of equally used codes that have the same entropy.
    """
    figure = blank_figure()
    for layer, taken in enumerate(counts):
        axes = add_axes(figure, 0, -layer * 480, 820, 380)
        shares = taken / taken.sum(1, keepdim=True).clamp(min=1)
        draw = _usage_bars if len(taken) == 1 else _usage_map
        draw(axes, shares)
        perplexity = float(torch.special.entr(shares).sum(1).exp().mean())
        used = f"{float((taken > 0).sum(1).float().mean()):.4g} of {taken.shape[1]} used"
        each = "" if len(taken) == 1 else ", mean over variables"
        name = f", {names[layer]}" if names else ""
        axes.set_title(f"{title}{name}: {used}, perplexity {perplexity:.1f}{each}", loc="left")
    return fit(figure)


def _usage_bars(axes: Axes, shares: Tensor) -> None:
    """One variable: codes sorted by usage, with uniform usage as a reference."""
    ranked = shares[0].sort(descending=True).values.numpy()
    axes.stairs(ranked, np.arange(len(ranked) + 1), fill=True, color=BLUE)
    axes.axhline(1 / len(ranked), color=ORANGE, linewidth=1, linestyle="--", label="uniform usage")
    axes.set(xlabel="codes, most used first", ylabel="share of all positions", xlim=(0, len(ranked)))
    axes.legend(loc="upper right")


def _usage_map(axes: Axes, shares: Tensor) -> None:
    """Several variables: a row for each, coloured by the share of images that took each code."""
    variables, codes = shares.shape
    box = (0.0, float(codes), float(variables), 0.0)
    shown = axes.imshow(shares.numpy(), "magma", vmin=0, aspect="auto", extent=box, interpolation="nearest")
    axes.set(xlabel="code index", ylabel="latent variable")
    for axis, count in ((axes.xaxis, codes), (axes.yaxis, variables)):
        each = range(0, count, math.ceil(count / 16))
        axis.set_ticks([index + 0.5 for index in each], [str(index) for index in each])
    figure = cast("Figure", axes.figure)
    bottom = round(axes.bbox.y0)
    figure.colorbar(shown, cax=add_axes(figure, 850, bottom, 20, 380), label="share of images")


@styled
def aggregate_posterior(
    means: Tensor,
    samples: Tensor,
    prior: PriorReference = "N(0, 1)",
    *,
    centres: str = "means",
    title: str = "Aggregate posterior and standard normal",
) -> Figure:
    """Histograms of means and samples of q(z|x), (N, D) each: a panel for each of the dimensions whose means vary most.

    prior: reference in each panel. centres: name of the means in the legend.
    """
    dims = means.var(0, correction=0).argsort(descending=True)[:PANELS].tolist()
    figure = blank_figure()
    for index, dim in enumerate(dims):
        row, column = divmod(index, PANEL_COLUMNS)
        axes = add_axes(figure, column * 280, -row * 250, 230, 180)
        drawn = prior[:, dim] if isinstance(prior, Tensor) else prior
        _density_panel(axes, means[:, dim], samples[:, dim], drawn, centres)
        axes.set_xlabel(f"$z_{{{dim}}}$", labelpad=2)
        axes.set_ylabel("density" if column == 0 else "")
    shown = f": the {len(dims)} of {means.shape[1]} dimensions that vary most" if len(dims) < means.shape[1] else ""
    first = figure.axes[0]
    first.annotate(title + shown, (0, 1), (0, 44), "axes fraction", "offset pixels", size=10, weight="bold")
    first.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.3)
    return fit(figure)


def _density_panel(axes: Axes, means: Tensor, samples: Tensor, prior: PriorReference, centres: str) -> None:
    low, high = _reach(samples, prior)
    count = min(max(16, 2 * math.isqrt(len(samples))), 48)  # narrow bins of few samples are mostly noise
    bins = np.linspace(low, high, count + 1).tolist()
    filled: dict[str, Any] = {"density": True, "histtype": "stepfilled", "color": BLUE, "alpha": 0.4}
    outlined: dict[str, Any] = {"density": True, "histtype": "step"}
    density, *_ = axes.hist(samples.numpy(), bins, label="samples of q(z|x)", **filled)
    axes.hist(means.numpy(), bins, color=BLUE, label=f"{centres} of q(z|x)", **outlined)
    highest = float(np.max(density))
    if isinstance(prior, Tensor):
        beside, *_ = axes.hist(prior.numpy(), bins, color=ORANGE, linewidth=1.4, label="the prior", **outlined)
        highest = max(highest, float(np.max(beside)))
    elif prior is not None:
        grid = torch.linspace(low, high, 193)
        normal: Distribution = Normal(0.0, 1.0)
        axes.plot(grid.numpy(), normal.log_prob(grid).exp().numpy(), color=ORANGE, linewidth=1.4, label=prior)
        highest = max(highest, 0.4)
    # the means of an unused dimension are a spike at 0: clip it rather than flatten everything else
    axes.set(xlim=(low, high), ylim=(0, 1.15 * highest))
    axes.locator_params(axis="y", nbins=3)


def _reach(samples: Tensor, prior: PriorReference) -> tuple[float, float]:
    """Limits of a panel's x axis, symmetric around 0 if the prior is N(0, 1)."""
    if isinstance(prior, str):
        reach = max(4.0, float(samples.abs().max()))
        return -reach, reach
    points = samples if prior is None else torch.cat([samples, prior])
    low, high = float(points.min()), float(points.max())
    margin = max(0.04 * (high - low), 1e-3)
    return low - margin, high + margin
