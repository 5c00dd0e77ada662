"""Pictures that are grids of images: what each of them decodes, and its texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_lab.figures import latent_paths as paths
from vae_lab.figures.canvas import latent_name
from vae_lab.figures.context import FigureContext
from vae_lab.figures.mosaic import Mosaic

GRID_PIXELS = 1400  # longest side of the latent grid: large images reduce the number of its cells
QUANTILES = 0.05, 0.95  # of the latent grid
REACH = 3.0  # half-width of traversals, in standard deviations
STACKS = 8  # images in a row, each above its reconstruction
ROW = 8  # samples per row in pictures with a row per class or temperature
MAX_CLASSES = 20  # rows of samples at most
TEMPERATURES = 0.6, 0.7, 0.8, 0.9, 1.0


def reconstructions(context: FigureContext) -> Mosaic:
    """Images above their reconstructions from the posterior centres, with log p(x|z)."""
    x = context.examples.x[: context.sizes.num_images]
    likelihood, labels = context.reconstruct(x), context.labels(len(x))
    log_px = likelihood.log_prob(x.to(context.model.device)).tolist()
    xlabel = "image index, and log p(x|z) in nats" + ("" if labels is None else "; below, the class given to the model")
    return stacked(
        {"original": x, "reconstruction": likelihood.mean.float().cpu()},
        captions=[f"{k}:  {_number(value, 1)}" for k, value in enumerate(log_px)],
        names=[] if labels is None else [context.examples.class_name(label) for label in labels.tolist()],
        title=context.title(f"Images of the {context.examples.split} split and their reconstructions"),
        xlabel=xlabel,
    )


def denoising(context: FigureContext) -> Mosaic:
    """Images, corrupted as in training, and their reconstructions."""
    assert context.corrupted is not None
    x = context.examples.x[: context.sizes.num_images]
    torch.manual_seed(context.sizes.seed)
    corrupted = context.corrupted(x.to(context.model.device)).cpu()
    return stacked(
        {"clean": x, "corrupted": corrupted, "restored": context.reconstruct(corrupted).mean.float().cpu()},
        captions=_numbers(len(x)),
        title=context.title(f"Images of the {context.examples.split} split, corrupted and restored"),
        xlabel="image index",
    )


def stacked(parts: Mapping[str, Tensor], **texts: Any) -> Mosaic:
    """The k-th images of several (N, C, H, W) above each other."""
    height, images = len(parts), torch.cat(list(parts.values()))
    count = len(images) // height
    columns, layers = min(STACKS, count), math.ceil(count / STACKS)
    top = [height * columns * (k // columns) + k % columns for k in range(count)]
    cells = [cell + part * columns for part in range(height) for cell in top]
    gaps = range(height - 1, height * layers - 1, height)
    return Mosaic(images, columns, cells=cells, gaps_below=gaps, row_labels=list(parts) * layers, **texts)


def samples(context: FigureContext) -> Mosaic:
    """Samples from the prior, with the same random numbers every time; a learned prior still changes them."""
    count, classes = context.sizes.num_samples, context.model.image.num_classes
    images = context.sample(count, torch.arange(count) % classes if context.model.conditional else None)
    cycle = f", cycling through the {classes} classes" if context.model.conditional else ""
    columns = math.ceil(math.sqrt(count))
    return Mosaic(
        images,
        columns,
        title=context.title(f"Samples from the prior{cycle}"),
        xlabel="sample index = row + column",
        column_labels=_numbers(columns),
        row_labels=[str(first) for first in range(0, count, columns)],
    )


def rows_of_samples(rows: Tensor, names: Sequence[str], *, title: str, ylabel: str) -> Mosaic:
    """(R, n, C, H, W): rows of samples, each with a name, all made from the same n random numbers."""
    count = rows.shape[1]
    return Mosaic(
        rows.flatten(0, 1),
        count,
        title=title,
        xlabel="sample index",
        ylabel=ylabel,
        column_labels=_numbers(count),
        row_labels=names,
    )


def samples_per_class(context: FigureContext) -> Mosaic:
    """A row for each class; the same z in a column, unless the prior depends on the class too."""
    names = context.class_names[:MAX_CLASSES]
    images = torch.stack([context.sample(ROW, torch.full((ROW,), label)) for label in range(len(names))])
    of = f" (first {len(names)} of {len(context.class_names)})" if len(names) < len(context.class_names) else ""
    title = context.title(f"Samples of each class{of}, same random numbers in each column")
    return rows_of_samples(images, names, title=title, ylabel="class")


def samples_by_temperature(context: FigureContext) -> Mosaic:
    """A row for each temperature of the priors of all layers; below 1, the priors are narrower."""
    y = torch.arange(ROW) % context.model.image.num_classes if context.model.conditional else None
    images = torch.stack([context.sample(ROW, y, temperature) for temperature in TEMPERATURES])
    title = context.title("Samples at lower temperatures, same random numbers in each column")
    return rows_of_samples(images, [f"{value:.1f}" for value in TEMPERATURES], title=title, ylabel="temperature")


def latent_grid(context: FigureContext) -> Mosaic:
    """Plane of the two most active dimensions at normal quantiles, the others at their means."""
    space, (mean, scale) = context.space, context.space.location
    dims = list(range(space.size)) if space.size <= 2 else space.dims_by_activity[:2]
    size = min(context.sizes.grid_size, max(8, GRID_PIXELS // max(context.model.image.shape[1:])))
    quantiles = torch.linspace(*QUANTILES, size)
    values = torch.special.ndtri(quantiles)
    images = space.decode(mean + scale * paths.plane(values, dims, space.size), context.first_label)
    along = (mean[dims, None] + scale[dims, None] * values).tolist()
    standard = space.prior_is_standard_normal
    normal, middle = ("N(0, 1)", "at 0") if standard else ("a normal with q(z)'s mean and scale", "at their means")
    what = "Latent space" if space.size <= 2 else f"The two most {space.activity} latent dimensions, others {middle}"
    return Mosaic(
        images.flip(0).flatten(0, 1),  # the smallest values at the lower left
        size,
        title=context.title(what + class_suffix(context)),
        xlabel=f"{latent_name(dims[0])}, and the share of {normal} below it",
        ylabel=latent_name(dims[1]) if len(dims) > 1 else "",
        column_labels=[f"{_number(z, 2)}\n{q:.0%}" for z, q in zip(along[0], quantiles.tolist(), strict=True)],
        row_labels=[_number(z, 2) for z in reversed(along[1])] if len(dims) > 1 else [],
    )


def traversals(context: FigureContext) -> Mosaic:
    """Latent of the first image with one dimension varied at a time, the most active first."""
    space, (mean, scale) = context.space, context.space.location
    dims = space.dims_by_activity[: context.sizes.num_traversed]
    values = torch.linspace(-REACH, REACH, context.sizes.num_steps)
    along = mean[dims, None] + scale[dims, None] * values
    images = space.decode(paths.axes_through(space.latents.centre[0], along, dims), context.first_label)
    where = f"image 0 of the {context.examples.split} split{class_suffix(context)}"
    units = "" if space.prior_is_standard_normal else ", in standard deviations of q(z) from its mean"
    names, ylabel = [latent_name(dim) for dim in dims], f"dimension, most {space.activity} first"
    if space.kl is not None:
        names = [f"{name}   KL {nats:.1f}" for name, nats in zip(names, space.kl[dims].tolist(), strict=True)]
        ylabel = "dimension, and its KL in nats"
    return Mosaic(
        images.flatten(0, 1),
        len(values),
        title=context.title(f"Traversals from {where}, one dimension at a time"),
        xlabel=f"value of the dimension{units}",
        ylabel=ylabel,
        column_labels=[_number(value, 1) for value in values.tolist()],
        row_labels=names,
    )


def class_suffix(context: FigureContext) -> str:
    """Title suffix: the class given to a conditional model."""
    label = context.first_label
    return "" if label is None else f" (class {context.examples.class_name(int(label))})"


def interpolations(context: FigureContext) -> Mosaic:
    """Interpolations between the posterior centres of pairs of images, each between its originals."""
    pairs, steps = min(context.sizes.num_pairs, len(context.examples) // 2), context.sizes.num_steps
    latent, kind = context.model.latents[0], context.sizes.interpolation
    x, centres = context.examples.x[: 2 * pairs], context.space.latents.centre[: 2 * pairs]
    y = context.labels(2 * pairs)
    z = paths.path_between(centres[::2], centres[1::2], steps, kind, latent)
    images = context.space.decode(z, None if y is None else y[::2, None])
    keeping = "" if y is None else ", class of the left image"
    centre = f"posterior {context.centre_name}"
    return Mosaic(
        torch.cat([x[::2, None], images, x[1::2, None]], dim=1).flatten(0, 1),
        steps + 2,
        title=context.title(
            f"Interpolations between images, {'spherical' if latent.kind == 'sphere' else kind}{keeping}"
        ),
        xlabel=f"fraction of the path from the left image's {centre} to the right image's",
        ylabel="pair index",
        column_labels=["original", *(_number(step / max(steps - 1, 1), 1) for step in range(steps)), "original"],
        row_labels=_numbers(pairs),
        gaps_right=(0, steps),
    )


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def _number(value: float, digits: int) -> str:
    """Format with a typographic minus sign, and without "-0"."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")
