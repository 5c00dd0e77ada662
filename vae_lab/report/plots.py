"""The interactive charts of a page: what Plotly draws in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.colors import to_hex

from vae_lab.figures.canvas import latent_name
from vae_lab.figures.charts import class_colours
from vae_lab.figures.context import FigureContext
from vae_lab.figures.pictures import posterior_points
from vae_lab.report.frames import THUMBNAIL_SIDE, limited, sheet, smallest
from vae_lab.report.page import embedded
from vae_lab.report.run_files import RunFiles
from vae_lab.utils.files import as_number

NUM_POINTS = 1000  # posterior means with a picture each
SHEET_COLUMNS = 32
MAX_BAR_NAMES = 40  # more would overlap
TERMS = {"elbo": ("ELBO", 1.0), "kl": ("Rate, the KL", 1.0), "log_px": ("Distortion, \N{MINUS SIGN}log p(x|z)", -1.0)}
DASHES = {"train": "dot", "val": "solid"}


class Plot(NamedTuple):
    """A chart by traces and layout of Plotly. words: what it shows, for those who do not see it."""

    words: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]


def training_curves(runs: Sequence[RunFiles]) -> list[Plot]:
    """ELBO, rate and distortion by step, of training and validation; charts without a value are left out."""
    plots = []
    for term, (title, sign) in TERMS.items():
        traces = [
            trace
            for index, run in enumerate(runs)
            for split in DASHES
            if (trace := _curve(run, split, term, sign, index, len(runs) > 1)) is not None
        ]
        if traces:
            layout = {
                "xaxis": {"title": {"text": "step"}},
                "yaxis": {"title": {"text": "nats per image"}},
                "legend": {"orientation": "h", "y": -0.3},
                "hovermode": "x unified",
                "showlegend": True,
            }
            plots.append(Plot(title, traces, layout))
    return plots


def _curve(run: RunFiles, split: str, term: str, sign: float, index: int, named: bool) -> dict[str, Any] | None:
    key = f"{split}/{term}"
    rows = [(row.get("step"), row.get("epoch"), as_number(row.get(key))) for row in run.rows]
    points = [(step, epoch, sign * value) for step, epoch, value in rows if value is not None]
    if not points:
        return None
    steps, epochs, values = zip(*points, strict=True)
    colour = to_hex(class_colours(10)[index % 10])
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(points) < 30 else "lines",
        "name": f"{run.letter} {split}" if named else split,
        "x": [as_number(step) for step in steps],
        "y": values,
        "customdata": epochs,
        "hovertemplate": "%{y:.6~g} (epoch %{customdata})",
        "line": {"color": colour if named or split == "val" else "#8a929e", "dash": DASHES[split]},
        "marker": {"size": 4},
    }


def posterior_means(context: FigureContext) -> tuple[Plot, dict[str, Any]]:
    """Points in a plane, coloured by label, and a sheet with the picture of each of them."""
    plane, images, labels = posterior_points(context), context.examples.x[:NUM_POINTS], context.examples.labels
    points, colours = plane.points[:NUM_POINTS], label_colours(context)
    classes = [None] if labels is None else labels[:NUM_POINTS].unique().tolist()
    traces = []
    for label in classes:
        of_class = [k for k in range(len(points)) if labels is None or labels[k] == label]
        x, y = points[of_class].T.tolist()
        name = "" if label is None else context.examples.class_name(label)
        traces.append({
            "type": "scatter", "mode": "markers", "name": name, "x": x, "y": y, "customdata": of_class,
            "marker": {"size": 6, "opacity": 0.8, "color": colours[label or 0]},
            "hovertemplate": f"image %{{customdata}}{', class ' + name if name else ''}<extra></extra>",
        })  # fmt: skip
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": plane.names[0].replace(" (", "<br>(")}},
        "yaxis": {"title": {"text": plane.names[1].replace(" (", "<br>(")}},
        "hovermode": "closest",
        "showlegend": len(classes) > 1,
        "legend": {"orientation": "h", "y": -0.3, "title": {"text": "class "}},
    }
    if plane.is_metric:  # distances can be compared
        layout["yaxis"] |= {"scaleanchor": "x", "constrain": "domain"}
    small = limited(images, THUMBNAIL_SIDE)
    thumbnails = {
        "sheet": embedded(*smallest(sheet(small, SHEET_COLUMNS))), "columns": SHEET_COLUMNS, "count": len(small),
        "height": small.shape[-2], "width": small.shape[-1],
    }  # fmt: skip
    return Plot(plane.title, traces, layout), thumbnails


def kl_per_dimension(context: FigureContext) -> Plot | None:
    """Bars, the largest first; None if the KL is not a sum over dimensions."""
    if not context.has_continuous_latents or context.space.kl is None:
        return None
    kl, order = context.space.kl.sort(descending=True)
    what = "dimension" if len(context.space.shape) == 1 else "feature, summed over positions"
    trace = {
        "type": "bar", "x": list(range(len(kl))), "y": kl.tolist(), "customdata": order.tolist(),
        "hovertemplate": f"{what} %{{customdata}}: %{{y:.4~g}} nats<extra></extra>", "marker": {"color": "#3b75af"},
    }  # fmt: skip
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": f"latent {what}, largest KL first"}, "showticklabels": len(kl) <= MAX_BAR_NAMES},
        "yaxis": {"title": {"text": "KL in nats per image"}},
    }
    if len(kl) <= MAX_BAR_NAMES:
        names = [latent_name(dim) for dim in order.tolist()]
        layout["xaxis"] |= {"tickvals": trace["x"], "ticktext": names}
    of = f"{len(context.examples)} images of the {context.examples.split} split"
    return Plot(context.title(f"KL of each latent {what}, mean over {of}"), [trace], layout)


def label_colours(context: FigureContext) -> list[str]:
    """A colour for each class, as in the pictures; one if there are no labels."""
    labels = context.examples.labels
    count = 1 if labels is None else max(len(context.class_names), 1 + int(labels.max()))
    return [to_hex(colour) for colour in class_colours(count)]
