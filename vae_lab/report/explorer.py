"""The latent space as decoded frames, for a map, sliders, paths or temperatures that work without the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vae_lab.figures import latent_paths as paths
from vae_lab.figures.canvas import latent_name
from vae_lab.figures.context import FigureContext
from vae_lab.figures.network import TIMES
from vae_lab.figures.pictures import has_axes
from vae_lab.report.frames import FRAME_SIDE, THUMBNAIL_SIDE, limited, sheet, smallest
from vae_lab.report.page import embedded
from vae_lab.report.plots import label_colours

NUM_SLIDERS, NUM_STARTS, NUM_CLASSES = 10, 8, 10
MAP_STEPS, SLIDER_STEPS, PATH_STEPS, TEMPERATURE_STEPS = 41, 25, 25, 11
FEWEST = 7  # frames along an axis
COLDEST = 0.5
REACH, FARTHEST = 3.0, 6.0  # standard deviations: of an axis, and of one prolonged to the posterior means beyond


@dataclass(frozen=True)
class Axis:
    """A direction to move along. values: where each start lies on it."""

    name: str
    low: float
    high: float
    values: list[float]


@dataclass(frozen=True)
class LatentFrames:
    """Frames of each start in a sheet with `columns` of them in a row.

    A map has the product of its axes, the second by rows; else each axis has a row, and the last row is the picture of
    the start itself and then originals.
    """

    kind: str  # map | sliders
    axes: list[Axis]
    columns: int
    caption: str
    starts_name: str
    starts: list[str]
    height: int
    width: int
    sheets: list[str] = field(default_factory=list)  # data addresses
    thumbnails: list[str] = field(default_factory=list)
    num_originals: int = 0
    blend: bool = True  # between frames; else the nearest one
    points: list[tuple[float, float, int]] = field(default_factory=list)  # of a map, with their labels
    colours: list[str] = field(default_factory=list)  # of the labels

    def add(self, frames: Tensor) -> None:
        """The next start's frames, (N, C, H, W)."""
        self.sheets.append(embedded(*smallest(sheet(frames, self.columns))))


def explorer(context: FigureContext, budget: int) -> LatentFrames | str:
    """Of at most about `budget` pixels; or the reason why there is none."""
    model = context.model
    if context.has_continuous_latents:
        if not has_axes(context):
            return _along_paths(context, budget) if len(context.examples) > 1 else "There is a single image."
        return _map(context, budget) if context.space.size <= 2 else _sliders(context, budget)
    if model.is_hierarchy and context.can_sample_at_temperature:
        return _temperatures(context)
    if not model.is_hierarchy:
        return "The latents are codes: there is nothing between two of them to move along."
    return "There are several layers of latents, and their priors cannot be sampled at other temperatures."


def _map(context: FigureContext, budget: int) -> LatentFrames:
    """One or two latents: decoded on a regular grid; of a conditional model, for each class."""
    space, (low, high) = context.space, _range(context)
    classes = context.class_names[:NUM_CLASSES] if context.model.conditional else []
    count, middle = max(1, len(classes)), space.location[0].tolist()
    axes = [
        Axis(latent_name(dim), float(low[dim]), float(high[dim]), [middle[dim]] * count) for dim in range(space.size)
    ]
    height, width = _frame_size(context)
    cells = budget / (height * width * count)
    steps = _odd(cells if space.size == 1 else math.sqrt(cells), MAP_STEPS)
    values = [torch.linspace(axis.low, axis.high, steps) for axis in axes]
    z = torch.cartesian_prod(*reversed(values)).reshape(-1, space.size).flip(1)  # the first dimension varies fastest
    found = LatentFrames("map", axes, steps, _caption_of_map(context, steps), "Class", classes or [""], height, width)
    if space.size == 2:
        pairs = zip(space.latents.centre.tolist(), _labels(context), strict=True)
        found.points.extend((x, y, label) for (x, y), label in pairs)
        found.colours.extend(label_colours(context))
    for label in range(count):
        y = torch.tensor(label, device=context.model.device) if classes else None
        found.add(limited(space.decode(z, y), FRAME_SIDE))
    return found


def _caption_of_map(context: FigureContext, steps: int) -> str:
    if context.space.size == 1:
        return f"Decoded at {steps} places; between them, a blend of the two nearest pictures."
    return (
        f"Decoded at {steps}{TIMES}{steps} places; between them, a blend of the four nearest pictures. Points: "
        "posterior means of images, coloured by label as in the chart of the posterior."
    )


def _sliders(context: FigureContext, budget: int) -> LatentFrames:
    """Several latents: the most active dimensions, one at a time, from a few images."""
    space, (low, high), chosen = context.space, _range(context), _starting_images(context)
    dims = space.dims_by_activity[:NUM_SLIDERS]
    centres = space.latents.centre[chosen]
    names = [latent_name(dim) for dim in dims]
    if space.kl is not None:
        names = [f"{name}, KL {nats:.2f}" for name, nats in zip(names, space.kl[dims].tolist(), strict=True)]
    axes = [
        Axis(name, float(low[dim]), float(high[dim]), centres[:, dim].tolist())
        for name, dim in zip(names, dims, strict=True)
    ]
    height, width = _frame_size(context)
    steps = _odd(budget / (height * width * len(chosen) * len(dims)), SLIDER_STEPS)
    caption = (
        f"The {len(dims)} most {space.activity} of {space.size} dimensions, each decoded at {steps} values, the other "
        "dimensions as in the image; between them, a blend of the two nearest pictures. Moving another slider starts "
        "again from the image."
    )
    found = LatentFrames(
        "sliders", axes, steps, caption, "Start from", _names(context, chosen), height, width, num_originals=1
    )
    along = torch.stack([torch.linspace(axis.low, axis.high, steps) for axis in axes])
    for index, centre in zip(chosen, centres, strict=True):
        y = None if (labels := context.labels(len(context.examples))) is None else labels[index]
        frames = space.decode(paths.axes_through(centre, along, dims), y).flatten(0, 1)
        own = space.decode(centre[None], y)
        _add_images(found, context, torch.cat([frames, own]), [index])
    return found


def _along_paths(context: FigureContext, budget: int) -> LatentFrames:
    """Latents without free axes, a map or a point on a sphere: the path between two images."""
    pairs = [(2 * k, 2 * k + 1) for k in range(min(NUM_STARTS, len(context.examples) // 2))]
    latent, centres = context.model.latents[0], context.space.latents.centre
    height, width = _frame_size(context)
    steps = _odd(budget / (height * width * len(pairs)), PATH_STEPS)
    kind = "a point on a sphere" if latent.kind == "sphere" else "a map, not a vector"
    caption = (
        f"A latent is {kind}, so no dimension can be moved alone: the slider follows the path between the latents of "
        f"two images, decoded at {steps} places; between them, a blend of the two nearest pictures."
    )
    names = [" and ".join(_names(context, pair)) for pair in pairs]
    axis = Axis("from the left to the right image", 0.0, 1.0, [0.0] * len(pairs))
    found = LatentFrames("sliders", [axis], steps, caption, "Images", names, height, width, num_originals=2)
    for start, end in pairs:
        z = paths.path_between(centres[[start]], centres[[end]], steps, context.sizes.interpolation, latent)[0]
        y = None if (labels := context.labels(len(context.examples))) is None else labels[start]
        frames = context.space.decode(z, y)
        _add_images(found, context, torch.cat([frames, frames[:1]]), [start, end])
    return found


def _temperatures(context: FigureContext) -> LatentFrames:
    """Several layers: samples at temperatures of all priors, with the same random numbers."""
    values = torch.linspace(COLDEST, 1.0, TEMPERATURE_STEPS).tolist()
    classes = context.model.image.num_classes
    y = torch.arange(NUM_STARTS) % classes if context.model.conditional else None
    rows = torch.stack([context.sample(NUM_STARTS, y, value) for value in values], 1)
    names = [f"sample {k}" for k in range(len(rows))]
    if y is not None:
        names = [f"{name}, class {context.class_names[label]}" for name, label in zip(names, y.tolist(), strict=True)]
    caption = (
        "There are several layers of latents, so no dimension is moved alone: the slider is the temperature of the "
        "priors of all layers, with the same random numbers. The pictures are those decoded, without a blend."
    )
    height, width = _frame_size(context)
    axis = Axis("temperature", COLDEST, 1.0, [1.0] * len(rows))
    found = LatentFrames("sliders", [axis], len(values), caption, "Sample", names, height, width, blend=False)
    for frames in rows:
        found.add(limited(torch.cat([frames, frames[-1:]]), FRAME_SIDE))
    return found


def _add_images(found: LatentFrames, context: FigureContext, frames: Tensor, images: Sequence[int]) -> None:
    """Frames of a start, its originals behind them, and its thumbnail."""
    originals = context.examples.x[list(images)]
    found.add(limited(torch.cat([frames, originals]), FRAME_SIDE))
    found.thumbnails.append(embedded(*smallest(sheet(limited(originals, THUMBNAIL_SIDE), len(images)))))


def _range(context: FigureContext) -> tuple[Tensor, Tensor]:
    """Ends of the axes, (D,) each: REACH standard deviations from the mean, or as far as there are posterior means."""
    mean, scale = context.space.location
    centres = context.space.latents.centre
    low = torch.minimum(mean - REACH * scale, centres.amin(0)).maximum(mean - FARTHEST * scale)
    high = torch.maximum(mean + REACH * scale, centres.amax(0)).minimum(mean + FARTHEST * scale)
    return low, high


def _odd(most: float, enough: int) -> int:
    """An odd number of frames, so that one of them is in the middle."""
    return (max(FEWEST, min(int(most), enough)) - 1) // 2 * 2 + 1


def _frame_size(context: FigureContext) -> tuple[int, int]:
    height, width = limited(context.examples.x[:1], FRAME_SIDE).shape[-2:]
    return height, width


def _starting_images(context: FigureContext) -> list[int]:
    """The first image of each class, then further ones."""
    labels, images = context.examples.labels, list(range(len(context.examples)))
    if labels is not None:
        first = {label: index for index, label in reversed(list(enumerate(labels.tolist())))}
        images = list(dict.fromkeys([*sorted(first.values()), *images]))
    return images[:NUM_STARTS]


def _labels(context: FigureContext) -> list[int]:
    labels = context.examples.labels
    return [0] * len(context.examples) if labels is None else labels.tolist()


def _names(context: FigureContext, images: Sequence[int]) -> list[str]:
    """Number, and class where it is known, of images."""
    labels, name = context.examples.labels, context.examples.class_name
    return [f"image {k}" + ("" if labels is None else f", class {name(int(labels[k]))}") for k in images]
