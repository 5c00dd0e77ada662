"""Figures: exact pixels, nothing cut off, every size, channel count and latent dimension."""

import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vae_lab import figures
from vae_lab.figures import latent_paths as latents
from vae_lab.figures.canvas import DPI
from vae_lab.figures.mosaic import FRAME, magnification, to_pixels


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(*shape, channels=1, size=8):
    return torch.rand(*shape, channels, size, size)


def drawn(figure):
    """Its pixels, after checking that nothing reaches over the edge and that it is titled and labelled."""
    pixels = figures.render(figure)
    box = figure.get_tightbbox(figure.canvas.get_renderer())
    height, width = pixels.shape[:2]
    assert box.x0 * DPI >= 8 and box.y0 * DPI >= 8
    assert box.x1 * DPI <= width - 8 and box.y1 * DPI <= height - 8
    border = np.concatenate([pixels[:4].ravel(), pixels[-4:].ravel(), pixels[:, :4].ravel(), pixels[:, -4:].ravel()])
    assert (border == 255).all()
    assert any(axes.get_title(loc="left") or axes.texts for axes in figure.axes)
    return pixels


def tile_at(figure, pixels, row, column, shape):
    """The pixels of one tile, found from the axes alone, brought back to the size of its image."""
    axes = figure.axes[0]
    box = axes.bbox
    top, left = round(pixels.shape[0] - box.y1), round(box.x0)
    rows, columns = shape
    size = columns[1]
    scale = magnification(rows, columns[0], size, size)
    pitch = size * scale + 2 * FRAME
    y, x = top + FRAME + row * pitch, left + FRAME + column * pitch
    tile = pixels[y : y + size * scale, x : x + size * scale]
    small = tile[::scale, ::scale]
    assert (small.repeat(scale, 0).repeat(scale, 1) == tile).all(), "a pixel is not one exact square"
    return small


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 128])
def test_every_pixel_is_magnified_exactly(channels, size):
    x = images(12, channels=channels, size=size)
    figure = figures.samples(x, numbered=True)
    pixels = drawn(figure)
    for index in range(12):
        tile = tile_at(figure, pixels, *divmod(index, 4), (3, (4, size)))
        assert (tile == to_pixels(x)[index]).all()


def test_grey_is_shown_as_grey():
    figure = figures.samples(torch.full((1, 1, 8, 8), 0.5))
    tile = tile_at(figure, drawn(figure), 0, 0, (1, (1, 8)))
    assert (tile == 128).all()


def test_sixteen_samples_are_four_by_four_and_an_incomplete_row_stays_white():
    figure = figures.samples(images(13))
    pixels = drawn(figure)
    box = figure.axes[0].bbox
    assert box.width == box.height
    assert (tile_at(figure, pixels, 3, 1, (4, (4, 8))) == 255).all()


@pytest.mark.parametrize("count", [1, 3, 8, 13, 16])
def test_a_reconstruction_lies_below_its_original(count):
    x, y = images(count), images(count)
    figure = figures.reconstructions(x, y, torch.randn(count) * 100)
    pixels = drawn(figure)
    columns = min(count, 8)
    grid = (2 * -(-count // columns), (columns, 8))
    assert (tile_at(figure, pixels, 0, columns - 1, grid) == to_pixels(x)[columns - 1]).all()
    assert (tile_at(figure, pixels, 1, columns - 1, grid) == to_pixels(y)[columns - 1]).all()
    assert len(figure.axes[0].texts) == count
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["original", "reconstruction"]


def test_the_latent_grid_has_its_smallest_values_at_the_lower_left():
    x, values = images(5, 5), torch.linspace(-2, 2, 5)
    figure = figures.latent_grid(x, values, (3, 7))
    pixels = drawn(figure)
    assert (tile_at(figure, pixels, 4, 0, (5, (5, 8))) == to_pixels(x[0])[0]).all()
    assert (tile_at(figure, pixels, 4, 4, (5, (5, 8))) == to_pixels(x[0])[4]).all()
    axes = figure.axes[0]
    assert axes.get_xlabel() == "$z_{3}$" and axes.get_ylabel() == "$z_{7}$"
    assert axes.get_xticklabels()[0].get_text() == "\N{MINUS SIGN}2.00"
    assert axes.get_yticklabels()[0].get_text() == "2.00"  # the first label is the upper one


def test_a_single_latent_dimension_gives_a_row():
    drawn(figures.latent_grid(images(1, 9), torch.linspace(-1, 1, 9), (0,), quantiles=torch.linspace(0.1, 0.9, 9)))


@pytest.mark.parametrize("dims", [1, 2, 3, 20, 100])
def test_every_number_of_latent_dimensions_is_drawn(dims):
    kl = torch.rand(dims).sort(descending=True).values
    drawn(figures.kl_per_dimension(kl))
    drawn(figures.aggregate_posterior(torch.randn(50, dims), torch.randn(50, dims)))
    shown = min(dims, 32)
    drawn(figures.traversals(images(shown, 3), torch.linspace(-3, 3, 3), range(shown), kl[:shown]))


def test_bars_are_sorted_and_name_their_dimension():
    figure = figures.kl_per_dimension(torch.tensor([0.001, 3.0, 1.0]))
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "0"]
    assert "2 of 3 active" in axes.get_title(loc="left")


def test_interpolations_with_and_without_originals():
    x, ends = images(3, 5), images(3, 2)
    drawn(figures.interpolations(x))
    figure = figures.interpolations(x, ends)
    tile = tile_at(figure, drawn(figure), 2, 0, (3, (7, 8)))
    assert (tile == to_pixels(ends[2])[0]).all()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels[0] == labels[-1] == "original"


@pytest.mark.parametrize("classes", [0, 1, 10, 18, 45, 200])
def test_the_legend_of_a_scatter_is_not_cut(classes):
    points = torch.randn(200, 2)
    labels = torch.arange(200) % classes if classes else None
    names = [f"a rather long class name {k}" for k in range(classes)]
    drawn(figures.latent_scatter(points, labels, names))


def test_three_rows_of_denoising_and_names_that_are_cut_to_their_image():
    x = [images(9) for _ in range(3)]
    figure = figures.denoising(*x)
    pixels = drawn(figure)
    for row in range(3):
        assert (tile_at(figure, pixels, row, 7, (6, (8, 8))) == to_pixels(x[row])[7]).all()
    captioned = figures.reconstructions(x[0], x[1], torch.zeros(9), ["a name that is much longer than its image"] * 9)
    drawn(captioned)
    texts = captioned.axes[0].texts
    renderer = captioned.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in texts[:8]]
    assert texts[3].get_text().endswith("\N{HORIZONTAL ELLIPSIS}")
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_rows_of_samples_are_named():
    x = images(3, 5)
    figure = figures.sample_rows(x, ["a", "b", "c"], ylabel="class")
    assert (tile_at(figure, drawn(figure), 1, 4, (3, (5, 8))) == to_pixels(x[1])[4]).all()
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]


def test_a_grid_names_the_values_of_each_axis():
    values = torch.tensor([[-1.0, 1.0], [10.0, 20.0]])
    axes = figures.latent_grid(images(2, 2), values, quantiles=torch.tensor([0.1, 0.9]), of="q(z)").axes[0]
    assert axes.get_xticklabels()[1].get_text() == "1.00\n90%" and "share of q(z)" in axes.get_xlabel()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["20.00", "10.00"]


def test_code_usage_tells_how_many_codes_are_used_and_how_evenly():
    shared, own = torch.tensor([[10, 0, 10, 0]]), torch.tensor([[6, 0, 0], [2, 2, 2]])
    figure = figures.code_usage([shared, own], ["layer 0", "layer 1"])
    drawn(figure)
    above, below, colours = figure.axes
    assert ", layer 0: 2 of 4 used, perplexity 2.0" in above.get_title(loc="left")
    assert "layer 1: 2 of 3 used, perplexity 2.0, mean over variables" in below.get_title(loc="left")
    assert above.bbox.y0 > below.bbox.y1 and (colours.bbox.y0, colours.bbox.y1) == (below.bbox.y0, below.bbox.y1)


def test_the_bars_of_layers_are_coloured_by_shape():
    figure = figures.kl_per_layer(torch.tensor([2.0, 3.0, 1.0]), ["8x1x1", "4x7x7", "4x7x7"])
    drawn(figure)
    axes = figure.axes[0]
    assert "6.0 nats in total" in axes.get_title(loc="left")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["8x1x1", "4x7x7"]
    assert len({bar.get_facecolor() for bar in axes.patches}) == 2


@pytest.mark.parametrize(("prior", "shown"), [(torch.rand(99, 2), "the prior"), (None, None)])
def test_an_aggregate_posterior_is_framed_by_what_is_drawn(prior, shown):
    samples = 10 + torch.rand(50, 2)
    figure = figures.aggregate_posterior(samples, samples, prior)
    drawn(figure)
    low, high = figure.axes[0].get_xlim()
    assert (low < 0.1) == (prior is not None) and 11 < high < 12
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()][2:] == ([shown] if shown else [])


def test_values_that_are_not_numbers_are_drawn_black():
    assert (to_pixels(torch.full((1, 1, 2, 2), torch.nan)) == 0).all()


def conv_layers():
    """Those of a deep autoencoder of 128x128 colour images."""
    encoder, decoder, channels = [], [nn.Linear(16, 512 * 16), nn.Unflatten(1, (512, 4, 4))], 3
    for out in (32, 64, 128, 256, 512):
        encoder += [nn.Conv2d(channels, out, 4, 2, 1), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    for out in (256, 128, 64, 32, 3):
        decoder += [nn.ConvTranspose2d(channels, out, 4, 2, 1), nn.ReLU()]
        channels = out
    model = SimpleNamespace(
        encoder=nn.Sequential(*encoder, nn.Flatten(), nn.Linear(512 * 16, 32)).eval(),
        decoder=nn.Sequential(*decoder).eval(),
        latent_shape=(16,),
        reconstruct=lambda x, y: model.decoder(model.encoder(x)[:, :16]),
    )
    return figures.trace_layers(model, torch.rand(1, 3, 128, 128))


def test_a_traced_network_names_each_change_of_shape():
    layers = conv_layers()
    shapes = [layer.shape for layer in layers if layer.part == "encoder"]
    assert shapes == [(32, 64, 64), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (8192,), (32,)]
    assert [(layer.name, layer.shape) for layer in layers if layer.part == "z"] == [("z", (16,))]
    assert layers[0].shape == layers[-1].shape == (3, 128, 128)


def test_the_names_below_a_drawn_network_do_not_overlap():
    figure = figures.network_drawing(conv_layers())
    drawn(figure)
    renderer = figure.canvas.get_renderer()
    names = [text for text in figure.axes[0].texts if "\n" in text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in names]
    assert len(boxes) == 16
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_planes_lines_and_arcs():
    values = torch.tensor([-1.0, 0.0, 2.0])
    z = latents.plane(values, (2, 0), 4)
    assert_close(z[1, 2], torch.tensor([0.0, 0.0, 2.0, 0.0]))
    assert latents.plane(values, (0,), 1).shape == (1, 3, 1)
    start, end = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    way = latents.arc(start, end, 3)
    assert_close(way[0, 1], torch.full((2,), 0.5**0.5))  # a quarter of the circle keeps its radius
    assert_close(way[1, 1], torch.zeros(2))  # opposite ends: straight through the middle
    assert_close(way[:, 0], start)
    assert_close(way[:, -1], end)


@pytest.mark.parametrize("shape", [(3,), (3, 2, 4)])
def test_arcs_on_a_sphere_stay_on_it_at_every_place(shape):
    start, end = (nn.functional.normalize(torch.randn(2, *shape), dim=1) for _ in range(2))
    way = latents.arc_on_sphere(start.flatten(1), end.flatten(1), 5, shape).reshape(2, 5, *shape)
    assert_close(way.norm(dim=2), torch.ones(2, 5, *shape[1:]))
    assert_close(way[:, 0], start)
    assert_close(way[:, -1], end)
    assert_close((way[:, 0] * way[:, 2]).sum(1), (way[:, 2] * way[:, 4]).sum(1))  # in the middle after half the way


def test_traversals_move_each_dimension_through_values_of_its_own():
    z = latents.axes_through(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[5.0, 6.0], [7.0, 8.0]]), (2, 0))
    assert z.tolist() == [[[1, 2, 5], [1, 2, 6]], [[7, 2, 3], [8, 2, 3]]]


def test_principal_components_find_the_long_axis_and_keep_its_sign():
    points = torch.randn(200, 1) * torch.tensor([[3.0, 4.0, 0.0]]) + 0.1 * torch.randn(200, 3)
    projected, explained = latents.principal_components(points)
    assert explained[0] > 0.99
    assert torch.corrcoef(torch.stack([projected[:, 0], points[:, 1]]))[0, 1] > 0.99
    assert latents.principal_components(torch.randn(1, 5))[0].shape == (1, 2)


def test_importing_the_figures_imports_no_matplotlib():
    code = "import sys, vae_lab.figures.pictures; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
