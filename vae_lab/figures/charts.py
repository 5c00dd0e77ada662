"""Charts: latent scatter, KL per dimension and per layer, code usage, aggregate posterior. Of tensors on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Distribution, Normal

from vae_lab.figures.canvas import BLUE, MUTED, ORANGE, add_axes, blank_figure, latent_name, styled

LEGEND_ROWS = 20
MAX_CLASSES = 60  # above this, the legend would be longer than the plot
MAX_BARS = 64  # above this, bars are too thin to compare and a histogram is added
BAR_LABELS = 24
PANELS, PANEL_COLUMNS = 12, 4
# Prior shown with a posterior; samples (M, D) unless it is N(0, 1)
PriorReference = Tensor | Literal["N(0, 1)"] | None


@styled
def latent_scatter(
    points: Tensor, title: str, labels: Tensor | None = None, class_names: Sequence[str] = (), **axes_options: Any
) -> Figure:
    """Scatter plot of points (N, 2), coloured by labels (N,) if given, with a legend of the classes."""
    figure = blank_figure()
    axes = add_axes(figure, 0, 0, 640, 640)
    axes.set(title=title, **axes_options)
    axes.grid(True)
    x, y = points.T.numpy()
    if labels is None:
        axes.scatter(x, y, s=9, color=BLUE, alpha=0.7, linewidths=0)
        return figure
    classes = labels.unique().tolist()
    colours = class_colours(max(len(class_names), 1 + max(classes)))
    # one call for all classes: plotted class by class, the last would hide the others where they overlap
    axes.scatter(x, y, s=9, c=colours[labels.numpy()], alpha=0.8, linewidths=0)
    if len(classes) <= MAX_CLASSES:
        for label in classes:
            name = class_names[label] if label < len(class_names) else str(label)
            axes.scatter([], [], s=28, color=colours[label], label=name)
        columns = math.ceil(len(classes) / LEGEND_ROWS)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), ncols=columns, title="class", handletextpad=0.2)
    return figure


def class_colours(count: int) -> NDArray[np.float64]:
    """RGBA (count, 4); easy to distinguish up to 20 classes."""
    if count > 20:
        return np.asarray(mpl.colormaps["gist_rainbow"](np.linspace(0, 1, count)))
    return np.asarray(mpl.colormaps["tab10" if count <= 10 else "tab20"](np.arange(count)))


@styled
def kl_per_dimension(kl: Tensor, title: str, threshold: float = 0.01) -> Figure:
    """Bar chart of kl (D,) in nats, largest first; dimensions below `threshold` are inactive."""
    values, order = kl.sort(descending=True)
    active = int((values > threshold).sum())
    figure = blank_figure()
    axes = _bar_axes(figure, f"{title}: {active} of {len(kl)} active, {values.sum():.1f} nats in total", order.tolist())
    axes.bar(range(len(kl)), values.numpy(), width=0.8, color=[BLUE] * active + [MUTED] * (len(kl) - active))
    axes.axhline(threshold, color=ORANGE, linewidth=1, linestyle="--", label=f"active above {threshold:g} nats")
    axes.set_xlabel("latent dimension, largest KL first")
    axes.legend(loc="upper right")
    if len(kl) > MAX_BARS:
        below = add_axes(figure, 0, -470, 820, 340)
        below.hist(values.numpy(), bins=40, color=BLUE)
        below.set(xlabel="KL in nats per image", ylabel="number of dimensions", title="Histogram of the same values")
    return figure


def _bar_axes(figure: Figure, title: str, labels: Sequence[int]) -> Axes:
    """Axes of bars in nats, labelled; only every k-th bar if labels would overlap."""
    axes = add_axes(figure, 0, 0, 820, 380)
    shown = range(0, len(labels), math.ceil(len(labels) / BAR_LABELS))
    axes.set_xticks(list(shown), [str(labels[index]) for index in shown])
    axes.set(title=title, ylabel="KL in nats per image", xlim=(-0.7, len(labels) - 0.3))
    return axes


@styled
def kl_per_layer(kl: Tensor, names: Sequence[str], title: str) -> Figure:
    """Bar chart of kl (L,) in nats, top of the hierarchy first; layers with the same name (a shape) share a colour."""
    figure = blank_figure()
    axes = _bar_axes(figure, f"{title}: {kl.sum():.1f} nats in total", range(len(kl)))
    shapes = list(dict.fromkeys(names))
    for shape, colour in zip(shapes, class_colours(len(shapes)), strict=True):
        layers = [layer for layer, name in enumerate(names) if name == shape]
        axes.bar(layers, kl[layers].numpy(), width=0.8, color=colour, label=shape)
    axes.set_xlabel("layer, top of the hierarchy first")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), title="latent shape")
    return figure


@styled
def code_usage(counts: Sequence[Tensor], title: str, names: Sequence[str] = ()) -> Figure:
    """counts: (G, K) for each layer, how often each of its G variables took each of K codes. names: of several layers.

    The perplexity, exp of the entropy, is the number of equally used codes that have the same entropy.
    """
    figure = blank_figure()
    for layer, taken in enumerate(counts):
        bottom = -layer * 480
        axes = add_axes(figure, 0, bottom, 820, 380)
        shares = taken / taken.sum(1, keepdim=True).clamp(min=1)
        if len(taken) == 1:
            _usage_bars(axes, shares[0])
        else:
            shown = _usage_map(axes, shares)
            figure.colorbar(shown, cax=add_axes(figure, 850, bottom, 20, 380), label="share of images")
        perplexity = float(torch.special.entr(shares).sum(1).exp().mean())
        used = f"{float((taken > 0).sum(1).float().mean()):.4g} of {taken.shape[1]} used"
        each = "" if len(taken) == 1 else ", mean over variables"
        name = f", {names[layer]}" if names else ""
        axes.set_title(f"{title}{name}: {used}, perplexity {perplexity:.1f}{each}")
    return figure


def _usage_bars(axes: Axes, shares: Tensor) -> None:
    """One variable: codes sorted by usage, with uniform usage as a reference."""
    ranked = shares.sort(descending=True).values.numpy()
    axes.stairs(ranked, np.arange(len(ranked) + 1), fill=True, color=BLUE)
    axes.axhline(1 / len(ranked), color=ORANGE, linewidth=1, linestyle="--", label="uniform usage")
    axes.set(xlabel="codes, most used first", ylabel="share of all positions", xlim=(0, len(ranked)))
    axes.legend(loc="upper right")


def _usage_map(axes: Axes, shares: Tensor) -> Any:
    """Several variables: a row for each, coloured by the share of images that took each code."""
    axes.set(xlabel="code index", ylabel="latent variable")
    axes.locator_params(integer=True)
    return axes.imshow(shares.numpy(), "magma", vmin=0, aspect="auto", interpolation="nearest")


@styled
def aggregate_posterior(
    means: Tensor, samples: Tensor, title: str, prior: PriorReference = "N(0, 1)", centres: str = "means"
) -> Figure:
    """Histograms of means and samples of q(z|x), (N, D) each: a panel for each of the dimensions whose means vary most.

    prior: reference in each panel. centres: name of the means in the legend.
    """
    dims = means.var(0, correction=0).argsort(descending=True)[:PANELS].tolist()
    figure = blank_figure()
    for index, dim in enumerate(dims):
        row, column = divmod(index, PANEL_COLUMNS)
        axes = add_axes(figure, column * 280, -row * 250, 230, 180)
        reference = prior[:, dim] if isinstance(prior, Tensor) else prior
        _density_panel(axes, means[:, dim], samples[:, dim], reference, centres)
        axes.set_xlabel(latent_name(dim), labelpad=2)
        axes.set_ylabel("density" if column == 0 else "")
    shown = f": the {len(dims)} of {means.shape[1]} dimensions that vary most" if len(dims) < means.shape[1] else ""
    first = figure.axes[0]
    first.set_title(title + shown, pad=25)
    first.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.3)
    return figure


def _density_panel(axes: Axes, means: Tensor, samples: Tensor, prior: PriorReference, centres: str) -> None:
    low, high = _reach(samples, prior)
    count = min(max(16, 2 * math.isqrt(len(samples))), 48)  # narrow bins of few samples are mostly noise
    bins = np.linspace(low, high, count + 1).tolist()
    outline: dict[str, Any] = {"density": True, "histtype": "step"}
    density, *_ = axes.hist(
        samples.numpy(), bins, density=True, color=BLUE, alpha=0.4, histtype="stepfilled", label="samples of q(z|x)"
    )
    axes.hist(means.numpy(), bins, color=BLUE, label=f"{centres} of q(z|x)", **outline)
    highest = float(np.max(density))
    if isinstance(prior, Tensor):
        beside, *_ = axes.hist(prior.numpy(), bins, color=ORANGE, linewidth=1.4, label="the prior", **outline)
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
