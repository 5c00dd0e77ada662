"""Every picture of a trained model: how it is drawn, and what it needs of the model.

Independent of Lightning: another program draws from a loaded model what the callback draws during training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vae_lab.figures import charts, grids
from vae_lab.figures import latent_paths as paths
from vae_lab.figures.canvas import latent_name
from vae_lab.figures.context import FigureContext
from vae_lab.figures.mosaic import Mosaic
from vae_lab.figures.network import TIMES, network_drawing, trace_layers
from vae_lab.utils.errors import UsageError


class PlanePoints(NamedTuple):
    """The example images as points of a plane."""

    points: Tensor  # (N, 2)
    names: list[str]  # of the two axes
    title: str
    is_metric: bool  # distances can be compared


def posterior_points(context: FigureContext) -> PlanePoints:
    """Posterior centres of the example images: against their scale if D = 1, by principal components if D > 2."""
    space, points, names = context.space, context.space.latents.centre, [latent_name(0), latent_name(1)]
    if space.size == 1:
        points, names = torch.cat([points, space.scale], 1), [names[0], f"standard deviation of {names[0]}"]
    elif space.size > 2:
        points, explained = paths.principal_components(points)
        names = [f"principal component {k} ({share:.0%} of the variance)" for k, share in enumerate(explained, 1)]
    title = f"Posterior {context.centre_name}s of {len(points)} images of the {context.examples.split} split"
    return PlanePoints(points, names, context.title(title), space.size > 1)


def latent_scatter(context: FigureContext) -> Figure:
    plane = posterior_points(context)
    options: dict[str, Any] = {"xlabel": plane.names[0], "ylabel": plane.names[1]}
    if plane.is_metric:
        options |= {"aspect": "equal", "adjustable": "datalim"}
    labels = context.examples.labels
    return charts.latent_scatter(plane.points, plane.title, labels, context.class_names, **options)


def kl_per_dimension(context: FigureContext) -> Figure:
    assert context.space.kl is not None
    what = "dimension" if len(context.space.shape) == 1 else "feature, summed over positions"
    return charts.kl_per_dimension(context.space.kl, context.title(f"KL of each latent {what}"))


def kl_per_layer(context: FigureContext) -> Figure:
    shapes = [TIMES.join(map(str, latent.shape)) for latent in context.model.latents]
    return charts.kl_per_layer(context.layer_kl(), shapes, context.title("KL of each layer"))


def aggregate_posterior(context: FigureContext) -> Figure:
    """Histograms of q(z), the posterior averaged over the example images."""
    space = context.space
    prior: charts.PriorReference = None
    beside = ""
    if space.prior_is_standard_normal:
        prior, beside = "N(0, 1)", " and N(0, 1)"
    elif context.can_sample:
        prior, beside = space.prior_sample(), " and prior"
    title, centres = context.title(f"Aggregate posterior{beside}"), f"{context.centre_name}s"
    return charts.aggregate_posterior(space.latents.centre, space.latents.sample, title, prior, centres)


def code_usage(context: FigureContext) -> Figure:
    """How often the example images take each code, for each layer of codes."""
    counts = context.code_counts()
    names = [f"layer {layer}" for layer in counts] if len(counts) > 1 else []
    title = context.title(f"Code usage of {len(context.examples)} images of the {context.examples.split} split")
    return charts.code_usage(list(counts.values()), title, names)


def network(context: FigureContext) -> Figure:
    """Diagram of the layers from the image through z and back, of a model with one layer of latents."""
    model = context.space.model
    layers = trace_layers(model, context.examples.x[:1].to(model.device), context.labels(1))
    image, latent = (TIMES.join(map(str, shape)) for shape in (model.image.shape, model.latent_shape))
    return network_drawing(layers, f"The network: from {image} to {latent} latent dimensions and back")


class Picture(NamedTuple):
    """How a picture is drawn, and what it needs of the model."""

    draw: Callable[[FigureContext], Mosaic | Figure]
    needs: str = ""  # in the words of an error message
    is_available: Callable[[FigureContext], bool] = lambda _: True


POINTS = "one layer of latents that are not codes"
AXES = "one vector of latents with unbounded values"


def has_axes(context: FigureContext) -> bool:
    return context.has_vector and context.model.latents[0].kind == "vector"


def has_layers(context: FigureContext) -> bool:
    return len(context.model.latents) > 1


PICTURES: Mapping[str, Picture] = {
    "reconstructions": Picture(grids.reconstructions),
    "denoising": Picture(grids.denoising, "a corruption of the images", lambda it: it.corrupted is not None),
    "interpolations": Picture(
        grids.interpolations, f"two images and {POINTS}", lambda it: it.has_continuous_latents and len(it.examples) > 1
    ),
    "latent_scatter": Picture(latent_scatter, POINTS, lambda it: it.has_continuous_latents),
    "aggregate_posterior": Picture(aggregate_posterior, "one vector of latents", lambda it: it.has_vector),
    "code_usage": Picture(
        code_usage, "latents that are codes", lambda it: any(latent.num_codes for latent in it.model.latents)
    ),
    "samples": Picture(grids.samples, "a prior that can be sampled", lambda it: it.can_sample),
    "samples_per_class": Picture(
        grids.samples_per_class,
        "a conditional model and a prior that can be sampled",
        lambda it: it.model.conditional and it.can_sample,
    ),
    "samples_by_temperature": Picture(
        grids.samples_by_temperature,
        "several layers of latents and priors that can be sampled at other temperatures",
        lambda it: has_layers(it) and it.can_sample_at_temperature,
    ),
    "latent_grid": Picture(grids.latent_grid, AXES, has_axes),
    "traversals": Picture(grids.traversals, AXES, has_axes),
    "kl_per_dimension": Picture(
        kl_per_dimension,
        "a KL that is a sum over latent dimensions",
        lambda it: it.has_continuous_latents and it.space.kl is not None,
    ),
    "kl_per_layer": Picture(kl_per_layer, "several layers of latents", has_layers),
}


def available_pictures(context: FigureContext) -> list[str]:
    """Names of the pictures that the model has."""
    return [what for what, picture in PICTURES.items() if picture.is_available(context)]


def require_available(context: FigureContext, pictures: Sequence[str]) -> None:
    """Raises UsageError for a picture that the model does not have."""
    able = available_pictures(context)
    for what in pictures:
        if what not in able:
            raise UsageError(
                f"callbacks.images.pictures has {what!r}, which needs {PICTURES[what].needs}.\n"
                f"Available for this model: {', '.join(sorted(able))}"
            )


def draw_figure(what: str, context: FigureContext) -> Figure:
    """The annotated figure of a picture."""
    drawn = PICTURES[what].draw(context)
    return drawn.figure() if isinstance(drawn, Mosaic) else drawn
