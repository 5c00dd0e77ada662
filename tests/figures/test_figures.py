"""Mosaics, charts and the network's diagram: exact pixels, nothing cut off, every size and latent dimension."""

import io
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

from vae_lab.core import ImageSpec
from vae_lab.figures import charts
from vae_lab.figures import latent_paths as paths
from vae_lab.figures.canvas import encode_gif, encode_png, figure_png
from vae_lab.figures.mosaic import FRAME, GAP, Mosaic, to_pixels
from vae_lab.figures.network import network_drawing, trace_layers
from vae_lab.likelihoods import ContinuousBernoulli
from vae_lab.models.vae import VAE
from vae_lab.posteriors.vectors import DiagonalGaussian
from vae_lab.priors.fixed import StandardNormal

mosaic = partial(Mosaic, title="title", xlabel="label")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def drawn(figure):
    """The figure's pixels, after checking that nothing reaches over the edge and that it has a title."""
    pixels = np.asarray(Image.open(io.BytesIO(figure_png(figure))).convert("RGB"))
    border = np.concatenate([pixels[:8].ravel(), pixels[-8:].ravel(), pixels[:, :8].ravel(), pixels[:, -8:].ravel()])
    assert (border == 255).all()
    assert figure.axes[0].get_title(loc="left")
    return pixels


def contains(picture, part):
    height, width = part.shape[:2]
    corners = np.argwhere((picture == part[0, 0]).all(-1))
    return any(np.array_equal(picture[y : y + height, x : x + width], part) for y, x in corners)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 28), (3, 128)])
def test_every_pixel_of_an_image_is_an_exact_square_in_the_grid_and_in_the_figure(channels, size):
    grid = mosaic(torch.rand(7, channels, size, size), 4, gaps_right=[0], row_labels="ab")
    pixels, scale = grid.pixels(), grid.magnification()
    images = iter(to_pixels(grid.images).repeat(scale, 1).repeat(scale, 2))
    pitch = scale * size + 2 * FRAME
    for cell in range(8):
        y, x = FRAME + cell // 4 * pitch, FRAME + cell % 4 * pitch + GAP * (cell % 4 > 0)
        assert (pixels[y : y + pitch - 2, x : x + pitch - 2] == next(images, 255)).all()  # the last cell is white
    assert contains(drawn(grid.figure()), pixels)


def test_grey_is_shown_as_grey_and_what_is_no_number_as_black():
    images = torch.tensor([0.5, torch.nan]).reshape(2, 1, 1, 1)
    assert to_pixels(images).flatten().tolist() == [128] * 3 + [0] * 3


def test_captions_and_names_stand_below_their_images_and_names_are_cut_to_them():
    texts = {"captions": list("abc"), "names": ["a name that is much longer than its image"] * 3}
    figure = mosaic(torch.rand(6, 1, 8, 8), 2, cells=[0, 1, 4, 2, 3, 6], gaps_below=[1], **texts).figure()
    drawn(figure)
    captions = figure.axes[0].texts
    assert [text.get_text()[0] for text in captions] == list("abc")
    assert all(text.get_text().endswith("\N{HORIZONTAL ELLIPSIS}") for text in captions)
    boxes = [text.get_window_extent() for text in captions]
    assert boxes[0].x1 < boxes[1].x0 and boxes[0].y0 > boxes[2].y1


def test_an_animation_of_frames_of_two_sizes_has_the_larger_one_and_at_most_100_frames(tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(150)]
    for k, path in enumerate(paths):
        path.write_bytes(encode_png(np.full((4, 4 + 4 * (k > 70), 3), k, np.uint8)))
    with Image.open(io.BytesIO(encode_gif(paths))) as gif:
        assert gif.size == (8, 4) and gif.n_frames == 100
        gif.seek(99)
        assert gif.info["duration"] == 1500 and gif.convert("RGB").getpixel((0, 0)) == (149, 149, 149)


@pytest.mark.parametrize("dims", [1, 3, 100])
def test_every_number_of_latent_dimensions_is_drawn(dims):
    drawn(charts.kl_per_dimension(torch.rand(dims), "KL"))
    drawn(charts.aggregate_posterior(torch.randn(50, dims), torch.randn(50, dims), "q(z)"))


def test_bars_are_sorted_and_name_their_dimension():
    axes = charts.kl_per_dimension(torch.tensor([0.001, 3.0, 1.0]), "KL").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "0"]
    assert "KL: 2 of 3 active, 4.0 nats in total" in axes.get_title(loc="left")


@pytest.mark.parametrize("classes", [0, 1, 45, 200])
def test_the_legend_of_a_scatter_is_not_cut(classes):
    labels = torch.arange(200) % classes if classes else None
    names = [f"a rather long class name {k}" for k in range(classes)]
    drawn(charts.latent_scatter(torch.randn(200, 2), "means", labels, names))


def test_code_usage_tells_how_many_codes_are_used_and_how_evenly():
    shared, own = torch.tensor([[10, 0, 10, 0]]), torch.tensor([[6, 0, 0], [2, 2, 2]])
    figure = charts.code_usage([shared, own], "usage", ["layer 0", "layer 1"])
    drawn(figure)
    above, below, colours = figure.axes
    assert "usage, layer 0: 2 of 4 used, perplexity 2.0" in above.get_title(loc="left")
    assert "layer 1: 2 of 3 used, perplexity 2.0, mean over variables" in below.get_title(loc="left")
    assert above.bbox.y0 > below.bbox.y1 and (colours.bbox.y0, colours.bbox.y1) == (below.bbox.y0, below.bbox.y1)


def test_the_bars_of_layers_are_coloured_by_shape():
    figure = charts.kl_per_layer(torch.tensor([2.0, 3.0, 1.0]), ["8x1x1", "4x7x7", "4x7x7"], "KL")
    drawn(figure)
    axes = figure.axes[0]
    assert "6.0 nats in total" in axes.get_title(loc="left")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["8x1x1", "4x7x7"]
    assert len({bar.get_facecolor() for bar in axes.patches}) == 2


@pytest.mark.parametrize(("prior", "shown"), [(torch.rand(99, 2), ["the prior"]), (None, [])])
def test_an_aggregate_posterior_is_framed_by_what_is_drawn(prior, shown):
    samples = 10 + torch.rand(50, 2)
    axes = charts.aggregate_posterior(samples, samples, "q(z)", prior).axes[0]
    low, high = axes.get_xlim()
    assert (low < 0.1) == (prior is not None) and 11 < high < 12
    assert [text.get_text() for text in axes.get_legend().get_texts()][2:] == shown


def test_a_traced_network_names_each_change_of_shape_and_its_names_do_not_overlap():
    """A deep autoencoder of 128x128 colour images."""
    encoder, decoder, channels = [], [nn.Linear(16, 64 * 16), nn.Unflatten(1, (64, 4, 4))], 3
    for out in (4, 8, 16, 32, 64):
        encoder += [nn.Conv2d(channels, out, 4, 2, 1), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    for out in (32, 16, 8, 4, 3):
        decoder += [nn.ConvTranspose2d(channels, out, 4, 2, 1), nn.ReLU()]
        channels = out
    networks = (
        lambda shape, size: nn.Sequential(*encoder, nn.Flatten(), nn.Linear(64 * 16, size)),
        lambda size, shape: nn.Sequential(*decoder),
    )
    model = VAE(ImageSpec(3, 128, 128), 16, *networks, DiagonalGaussian, StandardNormal, ContinuousBernoulli)
    layers = trace_layers(model.eval(), torch.rand(1, 3, 128, 128))
    shapes = [layer.shape for layer in layers if layer.part == "encoder"]
    assert shapes == [(4, 64, 64), (8, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4), (1024,), (32,)]
    assert [(layer.name, layer.shape) for layer in layers if layer.part == "z"] == [("z", (16,))]
    assert layers[0].shape == layers[-1].shape == (3, 128, 128)
    figure = network_drawing(layers, "The network")
    drawn(figure)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if "\n" in text.get_text()]
    assert len(boxes) == 16
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_planes_lines_and_arcs():
    values = torch.tensor([-1.0, 0.0, 2.0])
    z = paths.plane(values, (2, 0), 4)
    assert_close(z[1, 2], torch.tensor([0.0, 0.0, 2.0, 0.0]))
    assert paths.plane(values, (0,), 1).shape == (1, 3, 1)
    start, end = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    way = paths.arc(start, end, 3)
    assert_close(way[0, 1], torch.full((2,), 0.5**0.5))  # a quarter of the circle keeps its radius
    assert_close(way[1, 1], torch.zeros(2))  # opposite ends: straight through the middle
    assert_close(way[:, 0], start)
    assert_close(way[:, -1], end)


@pytest.mark.parametrize("shape", [(3,), (3, 2, 4)])
def test_arcs_on_a_sphere_stay_on_it_at_every_place(shape):
    start, end = (nn.functional.normalize(torch.randn(2, *shape), dim=1) for _ in range(2))
    way = paths.arc_on_sphere(start.flatten(1), end.flatten(1), 5, shape).reshape(2, 5, *shape)
    assert_close(way.norm(dim=2), torch.ones(2, 5, *shape[1:]))
    assert_close(way[:, 0], start)
    assert_close(way[:, -1], end)
    assert_close((way[:, 0] * way[:, 2]).sum(1), (way[:, 2] * way[:, 4]).sum(1))  # in the middle after half the way


def test_traversals_move_each_dimension_through_values_of_its_own():
    z = paths.axes_through(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[5.0, 6.0], [7.0, 8.0]]), (2, 0))
    assert z.tolist() == [[[1, 2, 5], [1, 2, 6]], [[7, 2, 3], [8, 2, 3]]]


def test_principal_components_find_the_long_axis_and_keep_its_sign():
    points = torch.randn(200, 1) * torch.tensor([[3.0, 4.0, 0.0]]) + 0.1 * torch.randn(200, 3)
    projected, explained = paths.principal_components(points)
    assert explained[0] > 0.99
    assert torch.corrcoef(torch.stack([projected[:, 0], points[:, 1]]))[0, 1] > 0.99
    assert paths.principal_components(torch.randn(1, 5))[0].shape == (1, 2)
