"""Which pictures there are of each kind of model, and what each of them decodes."""

import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import ExpTransform, Independent, Normal, TransformedDistribution
from torch.testing import assert_close

from vae_lab.core import ImageSpec, Latent, LatentSpec, Posterior, Trace
from vae_lab.figures.context import ExampleImages, FigureContext, FigureSizes
from vae_lab.figures.network import TIMES, Autoencoder, network_inputs
from vae_lab.figures.pictures import PICTURES, available_pictures, draw_figure, network, require_available
from vae_lab.likelihoods import ContinuousBernoulli
from vae_lab.models.base import Model, evaluation_mode
from vae_lab.models.vae import VAE
from vae_lab.posteriors.codes import NearestCode, RelaxedCategorical
from vae_lab.posteriors.vectors import Deterministic, DiagonalGaussian, VonMisesFisher
from vae_lab.priors.codes import UniformCodes
from vae_lab.priors.fixed import Flat, StandardNormal, UniformSphere
from vae_lab.utils.errors import UsageError

IMAGE = ImageSpec(1, 8, 8, num_classes=3)
SIZES = FigureSizes(num_images=4, num_samples=4, grid_size=3, num_steps=3, num_pairs=2, num_traversed=2)
MOSAICS = ("reconstructions", "samples", "samples_per_class", "interpolations", "traversals", "latent_grid")
OF_ALL = {"reconstructions", "samples"}
OF_POINTS = {"interpolations", "latent_scatter", *OF_ALL}
OF_VECTORS = {"aggregate_posterior", "latent_grid", "traversals", *OF_POINTS}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def linear(shape, out_shape, places):
    """A linear network; places: shape of the map that z is, if any."""
    layers = nn.Linear(math.prod(shape), math.prod(out_shape)), nn.Unflatten(1, out_shape)
    network = nn.Sequential(nn.Flatten(), *layers)
    network.spatial_shape = places
    return network


class LogNormal(Posterior):
    """A posterior of which neither mode nor mean nor variance is known."""

    kind = "vector"

    def __init__(self, latent_dim):
        super().__init__()
        self.num_params = self.num_features = latent_dim

    def forward(self, params):
        return TransformedDistribution(Independent(Normal(params, 0.1), 1), ExpTransform())


class ShiftedNormal(StandardNormal):
    """N(7, I)."""

    def forward(self, given=None):
        return Independent(Normal(self.mean + 7, self.scale), 1)


class ClassNormal(StandardNormal):
    """N(1, I) for the first class, N(2, I) for the second, and so on."""

    def forward(self, given=None):
        return Independent(Normal(self.mean + 1 + given.y[:, None], self.scale), 1)


class Classes(VAE):
    """Decodes nothing but the class it is told, to a grey value."""

    def decode(self, z, y=None):
        return grey((y / IMAGE.num_classes).expand(z.shape[:-1]))


def grey(values):
    """Images of one grey value each."""
    return Independent(Normal(values[..., None, None, None].expand(*values.shape, *IMAGE.shape), 1.0), 3)


def vae(posterior=DiagonalGaussian, prior=StandardNormal, *, kind=VAE, places=(), size=4, conditional=False):
    """A linear VAE of 8x8 images."""

    def encoder(shape, num_params):
        return linear(shape, (num_params, *places), places)

    def decoder(num_features, shape):
        return linear((num_features, *places), shape, places)

    return kind(IMAGE, size, encoder, decoder, posterior, prior, ContinuousBernoulli, conditional)


class Ladder(Model):
    """Two layers whose posteriors are N(1, I) and N(2, I); an image's grey value is the mean of the upper z."""

    image, conditional = IMAGE, False
    latents = (LatentSpec("vector", (2,), IMAGE), LatentSpec("vector", (1, 4, 4), IMAGE))

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def trace_sampler(self, x, y=None):
        def trace(num_samples):
            layers = []
            for mean, latent in enumerate(self.latents, 1):
                zeros, event = torch.zeros(latent.shape), len(latent.shape)
                q = Independent(Normal(mean + zeros.expand(len(x), *latent.shape), 1.0), event)
                layers.append(Latent(q.sample((num_samples,)), q, Independent(Normal(zeros, 1.0), event)))
            return Trace(grey(layers[0].z.mean(-1)), tuple(layers))

        return trace

    def reconstruct(self, x, y=None):
        return grey(torch.ones(len(x)))

    def sample(self, num_images, y=None, temperature=1.0):
        return grey(temperature * torch.randn(num_images))


@contextmanager
def looked_at(model, count=12, **options):
    x = torch.rand(count, *IMAGE.shape, generator=torch.Generator().manual_seed(0))
    examples = ExampleImages(x, torch.arange(count).flip(0) % 3, ("ant", "bee", "cat"))
    with evaluation_mode(model, 0):
        yield FigureContext(model, examples, SIZES, **options)


def mosaic_of(context, what):
    return PICTURES[what].draw(context)


CODES = {"code_usage", *OF_ALL}
KINDS = {
    "a vector of Gaussians": (vae, {"kl_per_dimension", *OF_VECTORS}),
    "a flow": (lambda: vae(LogNormal), OF_VECTORS),
    "another Gaussian prior": (lambda: vae(prior=ShiftedNormal), {"kl_per_dimension", *OF_VECTORS}),
    "a prior without samples": (lambda: vae(Deterministic, Flat), OF_VECTORS - {"samples"}),
    "a sphere": (lambda: vae(VonMisesFisher, UniformSphere), {"aggregate_posterior", *OF_POINTS}),
    "a map": (lambda: vae(places=(2, 3)), {"kl_per_dimension", *OF_POINTS}),
    "a map of spheres": (lambda: vae(VonMisesFisher, UniformSphere, places=(2, 3)), OF_POINTS),
    "a codebook": (lambda: vae(partial(NearestCode, num_codes=5), UniformCodes, places=(2, 3)), CODES),
    "categories": (lambda: vae(partial(RelaxedCategorical, num_categories=5), UniformCodes), CODES),
    "labels": (lambda: vae(conditional=True), {"kl_per_dimension", "samples_per_class", *OF_VECTORS}),
    "a prior of labels": (
        lambda: vae(prior=ClassNormal, conditional=True),
        {"kl_per_dimension", "samples_per_class", *OF_VECTORS},
    ),
    "layers": (Ladder, {"samples_by_temperature", "kl_per_layer", *OF_ALL}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_model_has_its_pictures(kind):
    make, expected = KINDS[kind]
    with looked_at(make()) as context:
        assert set(available_pictures(context)) == expected
        for what in expected:
            assert draw_figure(what, context).axes[0].get_title(loc="left"), what


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("kind", "latent"), [("a flow", "4"), ("a map of spheres", "4x2x3"), ("labels", "4")])
def test_the_network_is_drawn_and_can_be_traced(kind, latent):
    with looked_at(KINDS[kind][0]()) as context:
        title = network(context).axes[0].get_title(loc="left")
        seen, z = network_inputs(context.space.model, context.examples.x[:1], context.labels(1))
        traced = torch.jit.trace(Autoencoder(context.space.model, z), seen)
        assert_close(traced(seen), context.space.model.decoder(z))
    assert f"from 1x8x8 to {latent} latent dimensions" in title.replace(TIMES, "x")
    assert {"encoder", "decoder"} == {name for name, _ in traced.named_children()}


def test_a_picture_that_a_model_cannot_have_is_refused_with_those_that_it_can():
    with looked_at(Ladder()) as context, pytest.raises(UsageError) as refused:
        require_available(context, ["samples", "traversals"])
    assert "'traversals', which needs one vector of latents" in str(refused.value)
    able = "Available for this model: kl_per_layer, reconstructions, samples, samples_by_temperature"
    assert able in str(refused.value)


def test_a_single_image_has_every_picture_but_interpolations():
    with looked_at(vae(), count=1) as context:
        assert set(available_pictures(context)) == {"kl_per_dimension", *OF_VECTORS} - {"interpolations"}
        for what in available_pictures(context):
            draw_figure(what, context)


def test_what_is_shown_does_not_depend_on_what_was_drawn_before():
    model = vae(LogNormal)
    with looked_at(model) as context:
        alone = mosaic_of(context, "reconstructions").images
    with looked_at(model) as context:
        torch.rand(7)
        mosaic_of(context, "samples")
        assert mosaic_of(context, "reconstructions").images.equal(alone)


def test_the_latent_grid_has_its_smallest_values_at_the_lower_left():
    with looked_at(vae(size=2)) as context:
        grid, (low, high) = mosaic_of(context, "latent_grid"), torch.special.ndtri(torch.tensor([0.05, 0.95]))
        corners = context.space.decode(torch.tensor([[low, high], [low, low], [high, low]]))
    assert_close(grid.images[[0, 6, 8]], corners)
    assert grid.xlabel == "z₀, and the share of N(0, 1) below it" and grid.ylabel == "z₁"
    assert grid.column_labels[0] == "\N{MINUS SIGN}1.64\n5%"
    assert grid.row_labels == ["1.64", "0.00", "\N{MINUS SIGN}1.64"]


def test_each_image_is_above_its_reconstruction_and_between_its_interpolations():
    with looked_at(vae(), count=11) as context:
        x = context.examples.x
        pairs = mosaic_of(replace(context, sizes=FigureSizes()), "reconstructions")
        ways = mosaic_of(context, "interpolations")
    assert pairs.columns == 8 and list(pairs.cells) == [*range(8), 16, 17, 18, *range(8, 16), 24, 25, 26]
    assert list(pairs.gaps_below) == [1] and pairs.row_labels == ["original", "reconstruction"] * 2
    assert pairs.images[:11].equal(x) and len(pairs.captions) == 11
    assert ways.images[[0, 4, 5, 9]].equal(x[:4]) and ways.column_labels[0] == ways.column_labels[-1] == "original"


def test_latents_of_another_prior_are_looked_for_where_the_images_are():
    model = vae(Deterministic, Flat, size=2)
    with looked_at(model) as context:
        z = model.encode(context.examples.x).mean
        assert_close(context.space.location, (z.mean(0), z.std(0, correction=0)))
        grid = mosaic_of(context, "latent_grid")
    assert grid.column_labels[1] == f"{z.mean(0)[0]:.2f}\n50%".replace("-", "\N{MINUS SIGN}")
    assert "a normal with q(z)'s mean" in grid.xlabel


def test_a_kl_that_was_not_measured_is_that_of_the_images():
    with looked_at(vae(prior=ShiftedNormal)) as context:
        q = context.model.encode(context.examples.x)
        exact = 0.5 * ((q.mean - 7) ** 2 + q.variance - 1 - q.variance.log())
        assert_close(context.space.kl, exact.mean(0))
    with looked_at(vae(places=(2, 3)), validation_kl=torch.arange(24.0)) as context:
        assert context.space.kl.tolist() == [15, 51, 87, 123]  # of each feature, over six places


def test_layers_have_a_kl_each_in_nats():
    with looked_at(Ladder()) as context:
        assert_close(context.layer_kl(), torch.tensor([0.5 * 2 * 1.0, 0.5 * 16 * 4.0]))


def classes(images):
    """The classes that images of `Classes` are of."""
    return (images.mean((-1, -2, -3)) * IMAGE.num_classes).round().int().tolist()


def test_a_conditional_model_is_told_the_right_classes():
    with looked_at(vae(kind=Classes, conditional=True)) as context:
        shown = {what: mosaic_of(context, what) for what in available_pictures(context) if what in MOSAICS}
    told = {what: classes(mosaic.images) for what, mosaic in shown.items()}
    assert told["reconstructions"][4:] == [2, 1, 0, 2]  # the images' own
    assert shown["reconstructions"].names == ["cat", "bee", "ant", "cat"]
    assert told["samples"] == [0, 1, 2, 0]
    assert told["samples_per_class"] == [0] * 8 + [1] * 8 + [2] * 8
    assert shown["samples_per_class"].row_labels == ["ant", "bee", "cat"]
    assert told["interpolations"][1:4] == [2] * 3 and told["interpolations"][6:9] == [0] * 3  # of images 0 and 2
    for what in ("traversals", "latent_grid"):
        assert set(told[what]) == {2} and "(class cat)" in shown[what].title


def test_the_rows_of_classes_and_of_temperatures_share_their_random_numbers():
    with looked_at(vae(conditional=True)) as context:
        context.model.label_features.forward = lambda z, y: nn.functional.pad(z, (0, 3))  # deaf to the class
        rows = mosaic_of(context, "samples_per_class").images.unflatten(0, (3, 8))
        assert_close(rows[0], rows[2], rtol=0, atol=0)
        assert not rows[0, 0].equal(rows[0, 1])
    with looked_at(Ladder()) as context:
        mosaic = mosaic_of(context, "samples_by_temperature")
        assert_close(mosaic.images[:8], 0.6 * mosaic.images[-8:])
        assert mosaic.row_labels == ["0.6", "0.7", "0.8", "0.9", "1.0"]


def test_what_is_restored_is_the_corrupted_image():
    model = vae()
    with looked_at(model, corrupted=lambda x: x * (torch.rand_like(x) < 0.5)) as context:
        clean, corrupted, restored = mosaic_of(context, "denoising").images.split(4)
        assert clean.equal(context.examples.x[:4])
        assert 0.2 < (corrupted == 0).float().mean() < 0.8
        assert_close(restored, model.reconstruct(corrupted).mean)


def test_code_usage_counts_every_place():
    model = vae(partial(NearestCode, num_codes=5), UniformCodes, places=(2, 3))
    with looked_at(model) as context:
        (counts,) = context.code_counts().values()
        numbers = model.posterior.codes.indices(model.encode(context.examples.x).mode)
    assert counts.shape == (1, 5) and counts.sum() == 12 * 6
    assert counts[0].tolist() == [int((numbers == code).sum()) for code in range(5)]
