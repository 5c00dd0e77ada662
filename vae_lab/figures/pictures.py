"""Every picture of a trained model: which latents to decode, and the figure that shows them.

Needs no Lightning: a report draws from a loaded model what the callback draws during training. `abilities.py` says what
each picture needs of the scene.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vae_lab.figures import charts, tiles
from vae_lab.figures import latent_paths as latents
from vae_lab.figures.context import Scene
from vae_lab.figures.network import network_drawing as draw_network
from vae_lab.figures.network import trace_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID_PIXELS = 1400  # a latent grid of large images has fewer of them
QUANTILES = 0.05, 0.95
REACH = 3.0  # standard deviations to both sides that traversals go
ROW = 8  # samples in a row that is one of several
MOST_CLASSES = 20  # rows of samples
TEMPERATURES = 0.6, 0.7, 0.8, 0.9, 1.0
TIMES = "\N{MULTIPLICATION SIGN}"


def reconstructions(scene: Scene) -> Figure:
    """Test images above what their posteriors' centres decode to, with log p(x|z)."""
    x = scene.examples.x[: scene.sizes.num_images]
    likelihood = scene.reconstructed(len(x))
    log_px = likelihood.log_prob(x.to(scene.device)).float().cpu()
    names = [scene.examples.class_of(label) for label in labels_of(scene, len(x))]
    title = scene.title(f"Images of the {scene.examples.split} split and their reconstructions")
    return tiles.reconstructions(x, likelihood.mean.float().cpu(), log_px, names, title=title)


def labels_of(scene: Scene, count: int) -> list[int]:
    """Of the first images, where the model is given them."""
    labels = scene.labels(count)
    return [] if labels is None else [int(label) for label in labels]


def denoising(scene: Scene) -> Figure:
    """Test images, the same as the encoder sees them in training, and what is decoded of that."""
    x = scene.examples.x[: scene.sizes.num_images]
    corrupted = scene.corrupt(x)
    restored = scene.restored(corrupted).mean.float().cpu()
    title = scene.title(f"Images of the {scene.examples.split} split, corrupted and restored")
    return tiles.denoising(x, corrupted, restored, title=title)


def samples(scene: Scene) -> Figure:
    """The same draws from the prior every time: the seed fixes them, and a prior that learns moves them."""
    count = scene.sizes.num_samples
    classes = scene.model.image.num_classes
    y = torch.arange(count) % classes if scene.model.conditional else None
    title = "Samples from the prior" + ("" if y is None else f", of the {classes} classes in turn")
    return tiles.samples(scene.sample(count, y), title=scene.title(title), numbered=True)


def samples_per_class(scene: Scene) -> Figure:
    """A row for each class; in a column the same z, unless the prior depends on the class too."""
    names = scene.class_names[:MOST_CLASSES]
    images = torch.stack([scene.sample(ROW, torch.full((ROW,), label)) for label in range(len(names))])
    of = f" of the first {len(names)} of {len(scene.class_names)}" if len(names) < len(scene.class_names) else ""
    title = scene.title(f"Samples of each class{of}, the same random numbers in a column")
    return tiles.sample_rows(images, names, ylabel="class", title=title)


def samples_by_temperature(scene: Scene) -> Figure:
    """A row for each temperature of the priors of all layers: below 1, they are narrower."""
    y = torch.arange(ROW) % scene.model.image.num_classes if scene.model.conditional else None
    images = torch.stack([scene.sample(ROW, y, temperature) for temperature in TEMPERATURES])
    title = scene.title("Samples at lower temperatures, the same random numbers in a column")
    names = [f"{temperature:.1f}" for temperature in TEMPERATURES]
    return tiles.sample_rows(images, names, ylabel="temperature", title=title)


def latent_grid(scene: Scene) -> Figure:
    """The plane of the two most active dimensions at normal quantiles, the others in the middle."""
    space = scene.space
    dims = sorted(space.by_activity[:2]) if space.size == 2 else space.by_activity[:2]
    side = max(scene.model.image.shape[1:])
    size = min(scene.sizes.grid_size, max(8, GRID_PIXELS // side))
    quantiles = torch.linspace(*QUANTILES, size)
    values = torch.special.ndtri(quantiles)
    z = space.spread.mean + space.spread.scale * latents.plane(values, dims, space.size)
    images = space.decode(z, scene.first_label)
    standard = space.prior_is_standard_normal
    normal, middle = ("N(0, 1)", "0") if standard else ("a normal with q(z)'s mean and spread", "at their means")
    what = (
        "Latent space" if space.size <= 2 else f"The two most {space.activity} latent dimensions, the others {middle}"
    )
    along = space.spread.mean[dims, None] + space.spread.scale[dims, None] * values
    title = scene.title(what + in_class(scene))
    return tiles.latent_grid(images, along, dims, quantiles=quantiles, of=normal, title=title)


def traversals(scene: Scene) -> Figure:
    """The first image's latent with one dimension moved at a time, the most active above."""
    space, count = scene.space, len(scene.examples)
    dims = space.by_activity[: scene.sizes.num_traversed]
    values = torch.linspace(-REACH, REACH, scene.sizes.num_steps)
    along = space.spread.mean[dims, None] + space.spread.scale[dims, None] * values
    centre = space.latents.centre[0] if count else space.spread.mean
    images = space.decode(latents.axes_through(centre, along, dims), scene.first_label)
    where = f"image 0 of the {scene.examples.split} split" if count else "the origin"
    title = scene.title(f"Traversals from {where}{in_class(scene)}, one dimension at a time")
    units = "" if space.prior_is_standard_normal else ", in standard deviations of q(z) from its mean"
    kl = None if space.kl is None else space.kl[dims]
    labels = {"xlabel": f"value of the dimension{units}", "ylabel": f"dimension, most {space.activity} above"}
    return tiles.traversals(images, values, dims, kl, **labels, title=title)


def in_class(scene: Scene) -> str:
    """Which class a conditional model was told, for a title."""
    label = scene.first_label
    return "" if label is None else f" (class {scene.examples.class_of(int(label))})"


def interpolations(scene: Scene) -> Figure:
    """From the centre of one image's posterior to the next one's."""
    pairs = min(scene.sizes.num_pairs, len(scene.examples) // 2)
    x, centres = scene.examples.x[: 2 * pairs], scene.space.latents.centre[: 2 * pairs]
    kind, way = _way(scene)
    z = way(centres[::2], centres[1::2], scene.sizes.num_steps)
    y = scene.labels(2 * pairs)
    images = scene.space.decode(z, y if y is None else y[::2, None])
    originals = torch.stack([x[::2], x[1::2]], dim=1)
    keeping = "" if y is None else ", all of the left one's class"
    title = scene.title(f"From one image to another, {kind} interpolation{keeping}")
    return tiles.interpolations(images, originals, centre=f"posterior {_centre(scene)}", title=title)


def _way(scene: Scene) -> tuple[str, Callable[[Tensor, Tensor, int], Tensor]]:
    """From one latent to another, and its name."""
    latent = scene.model.latents[0]
    if latent.kind == "sphere":
        return "spherical", partial(latents.arc_on_sphere, shape=latent.shape)
    ways = {"spherical": latents.arc, "linear": latents.straight_line}
    return scene.sizes.interpolation, ways[scene.sizes.interpolation]


def _centre(scene: Scene) -> str:
    """What stands for a posterior."""
    return "mean direction" if scene.model.latents[0].kind == "sphere" else "mean"


def latent_scatter(scene: Scene) -> Figure:
    """The centres of the examples' posteriors, coloured by label."""
    space, count = scene.space, len(scene.examples)
    single = space.size == 1  # drawn beside its scale
    points, xlabel, ylabel = latents.to_plane(space.latents.centre, space.scale if single else None)
    title = scene.title(f"Posterior {_centre(scene)}s of {count} images of the {scene.examples.split} split")
    labels, names = scene.examples.labels, scene.examples.class_names
    axes = {"xlabel": xlabel, "ylabel": ylabel}
    return charts.latent_scatter(points, labels, names, **axes, equal=not single, title=title)


def kl_per_dimension(scene: Scene) -> Figure:
    """As bars."""
    space = scene.space
    what = "dimension" if len(space.shape) == 1 else "feature, over all its places"
    kl = torch.zeros(0) if space.kl is None else space.kl
    return charts.kl_per_dimension(kl, title=scene.title(f"KL of each latent {what}"))


def kl_per_layer(scene: Scene) -> Figure:
    """As bars."""
    shapes = [TIMES.join(map(str, latent.shape)) for latent in scene.model.latents]
    return charts.kl_per_layer(scene.layer_kl, shapes, title=scene.title("KL of each layer"))


def aggregate_posterior(scene: Scene) -> Figure:
    """Histograms of q(z), the posterior averaged over the examples."""
    space = scene.space
    prior: charts.Beside
    if space.prior_is_standard_normal:
        prior, beside = "N(0, 1)", " beside N(0, 1)"
    elif scene.can_sample:
        prior, beside = space.prior_sample(), " beside the prior"
    else:
        prior, beside = None, ""
    title = scene.title(f"Aggregate posterior{beside}")
    return charts.aggregate_posterior(
        space.latents.centre, space.latents.sample, prior, centres=f"{_centre(scene)}s", title=title
    )


def code_usage(scene: Scene) -> Figure:
    """How often the examples take each code, of each layer that consists of codes."""
    counts = scene.code_counts()
    names = [f"layer {layer}" for layer in counts] if len(counts) > 1 else []
    title = scene.title(f"Codes of {len(scene.examples)} images of the {scene.examples.split} split")
    return charts.code_usage(list(counts.values()), names, title=title)


def network_drawing(scene: Scene) -> Figure:
    """The layers from the image through z and back."""
    x = scene.examples.x[:1].to(scene.device)
    layers = trace_layers(scene.space.model, x, scene.on_device(scene.labels(1)))
    image, latent = (TIMES.join(map(str, shape)) for shape in (scene.model.image.shape, scene.space.shape))
    return draw_network(layers, title=f"The network: from {image} to {latent} latent dimensions and back")


PICTURES: Mapping[str, Callable[[Scene], Figure]] = {
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
