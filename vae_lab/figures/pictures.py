"""Every picture of a trained model: which latents to decode, and the figure that shows them.

Needs no Lightning: a report draws from a loaded model what the callback draws during training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from vae_lab.figures import charts, latents, tiles
from vae_lab.figures.network import autoencoder, trace_layers
from vae_lab.figures.network import network_drawing as draw_network
from vae_lab.figures.scene import Scene

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID_PIXELS = 1400  # a latent grid of large images has fewer of them
QUANTILES = 0.05, 0.95
REACH = 3.0  # traversals go from -REACH to REACH


def reconstructions(scene: Scene) -> Figure:
    """Test images above the decoded posterior means, with log p(x|z)."""
    x = scene.examples.x[: scene.sizes.num_images]
    means = scene.posterior[0][: len(x)]
    likelihood = scene.model.decode(means.to(scene.device))
    log_px = likelihood.log_prob(x.to(scene.device)).float().cpu()
    decoded = likelihood.mean.float().cpu()
    title = scene.title(f"Images of the {scene.examples.split} split and their reconstructions")
    return tiles.reconstructions(x, decoded, log_px, title=title)


def samples(scene: Scene) -> Figure:
    """The same draws from the prior every time: the seed fixes them, and a prior that learns moves them."""
    torch.manual_seed(scene.sizes.seed)
    z = scene.model.prior().sample((scene.sizes.num_samples,))
    return tiles.samples(scene.decode(z), title=scene.title("Samples from the prior"), numbered=True)


def latent_grid(scene: Scene) -> Figure:
    """The plane of the two most active dimensions at normal quantiles, the others at 0."""
    dims = sorted(scene.by_activity[:2]) if scene.latent_dim == 2 else scene.by_activity[:2]
    side = max(scene.decode(torch.zeros(1, scene.latent_dim)).shape[-2:])
    size = min(scene.sizes.grid_size, max(8, GRID_PIXELS // side))
    quantiles = torch.linspace(*QUANTILES, size)
    values = torch.special.ndtri(quantiles)
    images = scene.decode(latents.plane(values, dims, scene.latent_dim))
    what = "Latent space" if scene.latent_dim <= 2 else "The two most active latent dimensions, the others 0"
    return tiles.latent_grid(images, values, dims, quantiles=quantiles, title=scene.title(what))


def traversals(scene: Scene) -> Figure:
    """The first image's latent with one dimension moved at a time, the most active above."""
    dims = scene.by_activity[: scene.sizes.num_traversed]
    values = torch.linspace(-REACH, REACH, scene.sizes.num_steps)
    mean = scene.posterior[0]
    centre = mean[0] if len(mean) else mean.new_zeros(scene.latent_dim)
    images = scene.decode(latents.axes_through(centre, values, dims))
    where = f"image 0 of the {scene.examples.split} split" if len(mean) else "the origin"
    title = scene.title(f"Traversals from {where}, one dimension at a time")
    return tiles.traversals(images, values, dims, scene.kl[dims], title=title)


def interpolations(scene: Scene) -> Figure:
    """From the posterior mean of one image to the next one's."""
    pairs = min(scene.sizes.num_pairs, len(scene.examples.x) // 2)
    x, means = scene.examples.x[: 2 * pairs], scene.posterior[0][: 2 * pairs]
    way = latents.arc if scene.sizes.interpolation == "spherical" else latents.straight_line
    images = scene.decode(way(means[::2], means[1::2], scene.sizes.num_steps))
    originals = torch.stack([x[::2], x[1::2]], dim=1)
    title = scene.title(f"From one image to another, {scene.sizes.interpolation} interpolation")
    return tiles.interpolations(images, originals, title=title)


def latent_scatter(scene: Scene) -> Figure:
    """Posterior means of the examples, coloured by label."""
    mean, scale, _ = scene.posterior
    points, xlabel, ylabel = latents.to_plane(mean, scale)
    title = scene.title(f"Posterior means of {len(mean)} images of the {scene.examples.split} split")
    labels, names = scene.examples.labels, scene.examples.class_names
    equal = scene.latent_dim > 1  # a single one is drawn beside its scale
    axes = {"xlabel": xlabel, "ylabel": ylabel}
    return charts.latent_scatter(points, labels, names, **axes, equal=equal, title=title)


def kl_per_dimension(scene: Scene) -> Figure:
    """As bars."""
    return charts.kl_per_dimension(scene.kl, title=scene.title("KL of each latent dimension"))


def aggregate_posterior(scene: Scene) -> Figure:
    """Histograms of q(z), the posterior averaged over the examples."""
    mean, _, sample = scene.posterior
    return charts.aggregate_posterior(mean, sample, title=scene.title("Aggregate posterior beside N(0, 1)"))


def network_drawing(scene: Scene) -> Figure:
    """The layers from the image through z and back."""
    module = autoencoder(scene.model.encoder, scene.model.decoder, scene.latent_dim)
    layers = trace_layers(module, scene.examples.x[:1].to(scene.device))
    shape = "\N{MULTIPLICATION SIGN}".join(str(size) for size in layers[0].shape)
    return draw_network(layers, title=f"The network: from {shape} to {scene.latent_dim} latent dimensions and back")


FROM_LATENTS: Mapping[str, Callable[[Scene], Figure]] = {
    "samples": samples,
    "latent_grid": latent_grid,
    "traversals": traversals,
    "kl_per_dimension": kl_per_dimension,
}
FROM_IMAGES: Mapping[str, Callable[[Scene], Figure]] = {
    "reconstructions": reconstructions,
    "interpolations": interpolations,
    "latent_scatter": latent_scatter,
    "aggregate_posterior": aggregate_posterior,
}
PICTURES = {**FROM_IMAGES, **FROM_LATENTS}


def drawable(scene: Scene) -> list[str]:
    """The pictures that the examples suffice for."""
    enough = {"interpolations": 2}
    have = len(scene.examples.x)
    return [what for what in PICTURES if what in FROM_LATENTS or have >= enough.get(what, 1)]
