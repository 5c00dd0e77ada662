"""Pictures of a trained model: the latents to decode, and the figures that show them.

Independent of Lightning: a report draws from a loaded model what the callback draws during training. `requirements.py`
lists what each picture needs of the context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vae_lab.figures import charts, tiles
from vae_lab.figures import latent_paths as latents
from vae_lab.figures.context import FigureContext
from vae_lab.figures.grids import latent_plane, sample_images
from vae_lab.figures.network import network_drawing as draw_network
from vae_lab.figures.network import trace_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REACH = 3.0  # half-width of traversals, in standard deviations
ROW = 8  # samples per row in pictures with a row per class or temperature
MAX_CLASSES = 20  # rows of samples at most
TEMPERATURES = 0.6, 0.7, 0.8, 0.9, 1.0
TIMES = "\N{MULTIPLICATION SIGN}"


def reconstructions(context: FigureContext) -> Figure:
    """Images above their reconstructions from the posterior centres, with log p(x|z)."""
    x = context.examples.x[: context.sizes.num_images]
    likelihood = context.reconstructed(len(x))
    log_px = likelihood.log_prob(x.to(context.device)).float().cpu()
    names = [context.examples.class_name(label) for label in label_list(context, len(x))]
    title = context.title(f"Images of the {context.examples.split} split and their reconstructions")
    return tiles.reconstructions(x, likelihood.mean.float().cpu(), log_px, names, title=title)


def label_list(context: FigureContext, count: int) -> list[int]:
    """Labels of the first images; empty for an unconditional model."""
    labels = context.labels(count)
    return [] if labels is None else [int(label) for label in labels]


def denoising(context: FigureContext) -> Figure:
    """Images, corrupted as in training, and their reconstructions."""
    x = context.examples.x[: context.sizes.num_images]
    corrupted = context.corrupt(x)
    restored = context.restored(corrupted).mean.float().cpu()
    title = context.title(f"Images of the {context.examples.split} split, corrupted and restored")
    return tiles.denoising(x, corrupted, restored, title=title)


def samples(context: FigureContext) -> Figure:
    """Samples from the prior, with the same random numbers every time; a learned prior still changes them."""
    classes = f", cycling through the {context.model.image.num_classes} classes" if context.model.conditional else ""
    return tiles.samples(sample_images(context), title=context.title(f"Samples from the prior{classes}"), numbered=True)


def samples_per_class(context: FigureContext) -> Figure:
    """A row for each class; the same z in a column, unless the prior depends on the class too."""
    names = context.class_names[:MAX_CLASSES]
    images = torch.stack([context.sample(ROW, torch.full((ROW,), label)) for label in range(len(names))])
    of = f" (first {len(names)} of {len(context.class_names)})" if len(names) < len(context.class_names) else ""
    title = context.title(f"Samples of each class{of}, same random numbers in each column")
    return tiles.sample_rows(images, names, ylabel="class", title=title)


def samples_by_temperature(context: FigureContext) -> Figure:
    """A row for each temperature of the priors of all layers; below 1, the priors are narrower."""
    y = torch.arange(ROW) % context.model.image.num_classes if context.model.conditional else None
    images = torch.stack([context.sample(ROW, y, temperature) for temperature in TEMPERATURES])
    title = context.title("Samples at lower temperatures, same random numbers in each column")
    names = [f"{temperature:.1f}" for temperature in TEMPERATURES]
    return tiles.sample_rows(images, names, ylabel="temperature", title=title)


def latent_grid(context: FigureContext) -> Figure:
    """Plane of the two most active dimensions at normal quantiles, the others at their means."""
    space, plane = context.space, latent_plane(context)
    standard = space.prior_is_standard_normal
    normal, middle = ("N(0, 1)", "at 0") if standard else ("a normal with q(z)'s mean and scale", "at their means")
    what = "Latent space" if space.size <= 2 else f"The two most {space.activity} latent dimensions, others {middle}"
    title = context.title(what + class_suffix(context))
    return tiles.latent_grid(plane.images, plane.along, plane.dims, quantiles=plane.quantiles, of=normal, title=title)


def traversals(context: FigureContext) -> Figure:
    """Latent of the first image with one dimension varied at a time, the most active first."""
    space, count = context.space, len(context.examples)
    dims = space.dims_by_activity[: context.sizes.num_traversed]
    values = torch.linspace(-REACH, REACH, context.sizes.num_steps)
    along = space.location.mean[dims, None] + space.location.scale[dims, None] * values
    centre = space.latents.centre[0] if count else space.location.mean
    images = space.decode(latents.axes_through(centre, along, dims), context.first_label)
    where = f"image 0 of the {context.examples.split} split" if count else "the origin"
    title = context.title(f"Traversals from {where}{class_suffix(context)}, one dimension at a time")
    units = "" if space.prior_is_standard_normal else ", in standard deviations of q(z) from its mean"
    kl = None if space.kl is None else space.kl[dims]
    labels = {"xlabel": f"value of the dimension{units}", "ylabel": f"dimension, most {space.activity} first"}
    return tiles.traversals(images, values, dims, kl, **labels, title=title)


def class_suffix(context: FigureContext) -> str:
    """Title suffix: the class given to a conditional model."""
    label = context.first_label
    return "" if label is None else f" (class {context.examples.class_name(int(label))})"


def interpolations(context: FigureContext) -> Figure:
    """Interpolations between the posterior centres of pairs of images."""
    pairs = min(context.sizes.num_pairs, len(context.examples) // 2)
    x, centres = context.examples.x[: 2 * pairs], context.space.latents.centre[: 2 * pairs]
    kind, way = _interpolation(context)
    z = way(centres[::2], centres[1::2], context.sizes.num_steps)
    y = context.labels(2 * pairs)
    images = context.space.decode(z, y if y is None else y[::2, None])
    originals = torch.stack([x[::2], x[1::2]], dim=1)
    keeping = "" if y is None else ", class of the left image"
    title = context.title(f"Interpolations between images, {kind}{keeping}")
    return tiles.interpolations(images, originals, centre=f"posterior {_centre_name(context)}", title=title)


def _interpolation(context: FigureContext) -> tuple[str, Callable[[Tensor, Tensor, int], Tensor]]:
    """Name and function of the interpolation between two latents."""
    latent = context.model.latents[0]
    if latent.kind == "sphere":
        return "spherical", partial(latents.arc_on_sphere, shape=latent.shape)
    ways = {"spherical": latents.arc, "linear": latents.straight_line}
    return context.sizes.interpolation, ways[context.sizes.interpolation]


def _centre_name(context: FigureContext) -> str:
    """Name of the point estimate of a posterior."""
    return "mean direction" if context.model.latents[0].kind == "sphere" else "mean"


def latent_scatter(context: FigureContext) -> Figure:
    """Posterior centres of the example images, coloured by label."""
    space, count = context.space, len(context.examples)
    single = space.size == 1  # plotted against its scale
    points, xlabel, ylabel = latents.project_to_plane(space.latents.centre, space.scale if single else None)
    title = context.title(f"Posterior {_centre_name(context)}s of {count} images of the {context.examples.split} split")
    labels, names = context.examples.labels, context.examples.class_names
    axes = {"xlabel": xlabel, "ylabel": ylabel}
    return charts.latent_scatter(points, labels, names, **axes, equal=not single, title=title)


def kl_per_dimension(context: FigureContext) -> Figure:
    space = context.space
    what = "dimension" if len(space.shape) == 1 else "feature, summed over positions"
    kl = torch.zeros(0) if space.kl is None else space.kl
    return charts.kl_per_dimension(kl, title=context.title(f"KL of each latent {what}"))


def kl_per_layer(context: FigureContext) -> Figure:
    shapes = [TIMES.join(map(str, latent.shape)) for latent in context.model.latents]
    return charts.kl_per_layer(context.layer_kl, shapes, title=context.title("KL of each layer"))


def aggregate_posterior(context: FigureContext) -> Figure:
    """Histograms of q(z), the posterior averaged over the example images."""
    space = context.space
    prior: charts.PriorReference
    if space.prior_is_standard_normal:
        prior, beside = "N(0, 1)", " and N(0, 1)"
    elif context.can_sample:
        prior, beside = space.prior_sample(), " and prior"
    else:
        prior, beside = None, ""
    title = context.title(f"Aggregate posterior{beside}")
    return charts.aggregate_posterior(
        space.latents.centre, space.latents.sample, prior, centres=f"{_centre_name(context)}s", title=title
    )


def code_usage(context: FigureContext) -> Figure:
    """How often the example images take each code, for each layer of codes."""
    counts = context.code_counts()
    names = [f"layer {layer}" for layer in counts] if len(counts) > 1 else []
    title = context.title(f"Code usage of {len(context.examples)} images of the {context.examples.split} split")
    return charts.code_usage(list(counts.values()), names, title=title)


def network_drawing(context: FigureContext) -> Figure:
    """Diagram of the layers from the image through z and back."""
    x = context.examples.x[:1].to(context.device)
    layers = trace_layers(context.space.model, x, context.on_device(context.labels(1)))
    image, latent = (TIMES.join(map(str, shape)) for shape in (context.model.image.shape, context.space.shape))
    return draw_network(layers, title=f"The network: from {image} to {latent} latent dimensions and back")


PICTURES: Mapping[str, Callable[[FigureContext], Figure]] = {
    "reconstructions": reconstructions,
    "denoising": denoising,
    "interpolations": interpolations,
    "latent_scatter": latent_scatter,
    "aggregate_posterior": aggregate_posterior,
    "code_usage": code_usage,
    "samples": samples,
    "samples_per_class": samples_per_class,
    "samples_by_temperature": samples_by_temperature,
    "latent_grid": latent_grid,
    "traversals": traversals,
    "kl_per_dimension": kl_per_dimension,
    "kl_per_layer": kl_per_layer,
}
