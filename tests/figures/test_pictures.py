"""Which pictures there are of each kind of model, and what each of them decodes."""

import math
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import ExpTransform, Independent, Normal, TransformedDistribution
from torch.testing import assert_close

from vae_lab import figures
from vae_lab.core import ImageSpec, Latent, LatentSpec, Posterior, Trace
from vae_lab.figures.context import ExampleImages, FigureContext, FigureSizes, evaluation_mode
from vae_lab.figures.pictures import PICTURES, TIMES, network_drawing
from vae_lab.figures.requirements import REQUIREMENTS, available_pictures, require_available
from vae_lab.likelihoods import ContinuousBernoulli
from vae_lab.models.base import Model
from vae_lab.models.vae import VAE
from vae_lab.posteriors.codes import NearestCode, RelaxedCategorical
from vae_lab.posteriors.vectors import Deterministic, DiagonalGaussian, VonMisesFisher
from vae_lab.priors.codes import UniformCodes
from vae_lab.priors.fixed import Flat, StandardNormal, UniformSphere
from vae_lab.utils.errors import UsageError

IMAGE = ImageSpec(1, 8, 8, num_classes=3)
SIZES = FigureSizes(num_images=4, num_samples=4, grid_size=3, num_steps=3, num_pairs=2, num_traversed=2)
OF_ALL = {"reconstructions", "samples"}
OF_POINTS = {"interpolations", "latent_scatter", *OF_ALL}
OF_VECTORS = {"aggregate_posterior", "latent_grid", "traversals", *OF_POINTS}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class ToMap(nn.Sequential):
    """Leaves a map of 2x3."""

    spatial_shape = (2, 3)

    def __init__(self, shape, size):
        super().__init__(nn.Flatten(), nn.Linear(math.prod(shape), 6 * size), nn.Unflatten(1, (size, 2, 3)))


def encoder(shape, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), size))


def decoder(places, size, shape):
    network = nn.Sequential(nn.Flatten(), nn.Linear(places * size, math.prod(shape)), nn.Unflatten(1, shape))
    network.spatial_shape = (2, 3) if places > 1 else ()
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


def vae(posterior=DiagonalGaussian, prior=StandardNormal, *, kind=VAE, places=1, size=4, conditional=False):
    """A linear VAE of 8x8 images."""
    networks = (encoder if places == 1 else ToMap, partial(decoder, places))
    return kind(IMAGE, size, *networks, posterior, prior, ContinuousBernoulli, conditional)


class Ladder(Model):
    """Two layers whose posteriors are N(1, I) and N(2, I); an image's grey value is the mean of the upper z."""

    image, conditional = IMAGE, False
    latents = (LatentSpec("vector", (2,), IMAGE), LatentSpec("vector", (1, 4, 4), IMAGE))

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
    with evaluation_mode(model, torch.device("cpu"), 0):
        yield FigureContext(model, torch.device("cpu"), examples, SIZES, **options)


def shown_by(monkeypatch, context, what, draw):
    """The arguments with which a picture has its figure drawn."""
    seen = []
    monkeypatch.setattr(f"vae_lab.figures.tiles.{draw}", lambda *args, **options: seen.append(args))
    PICTURES[what](context)
    return seen[0]


CODES = {"code_usage", *OF_ALL}
KINDS = {
    "a vector of Gaussians": (vae, {"kl_per_dimension", *OF_VECTORS}),
    "a flow": (lambda: vae(LogNormal), OF_VECTORS),
    "another Gaussian prior": (lambda: vae(prior=ShiftedNormal), {"kl_per_dimension", *OF_VECTORS}),
    "a prior without samples": (lambda: vae(Deterministic, Flat), OF_VECTORS - {"samples"}),
    "a sphere": (lambda: vae(VonMisesFisher, UniformSphere), {"aggregate_posterior", *OF_POINTS}),
    "a map": (lambda: vae(places=6), {"kl_per_dimension", *OF_POINTS}),
    "a map of spheres": (lambda: vae(VonMisesFisher, UniformSphere, places=6), OF_POINTS),
    "a codebook": (lambda: vae(partial(NearestCode, num_codes=5), UniformCodes, places=6), CODES),
    "categories": (lambda: vae(partial(RelaxedCategorical, num_categories=5), UniformCodes), CODES),
    "labels": (lambda: vae(conditional=True), {"kl_per_dimension", "samples_per_class", *OF_VECTORS}),
    "a prior of labels": (
        lambda: vae(prior=ClassNormal, conditional=True),
        {"kl_per_dimension", "samples_per_class", *OF_VECTORS},
    ),
    "layers": (Ladder, {"samples_by_temperature", "kl_per_layer", *OF_ALL}),
}


@pytest.fixture
def unfitted(monkeypatch):
    """Figures as they are before they are fitted to their texts, which is most of the work."""
    for module in ("tiles", "charts", "network"):
        monkeypatch.setattr(f"vae_lab.figures.{module}.fit_axes", lambda axes: axes.figure)
    monkeypatch.setattr("vae_lab.figures.charts.fit", lambda figure: figure)


@pytest.mark.usefixtures("unfitted")
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_model_has_its_pictures(kind):
    make, expected = KINDS[kind]
    with looked_at(make()) as context:
        assert set(available_pictures(context)) == expected
        for what in expected:
            assert PICTURES[what](context).axes, what


def test_each_picture_says_what_it_needs():
    assert list(REQUIREMENTS) == list(PICTURES)


def test_the_network_of_a_map_and_of_a_conditional_model_is_drawn():
    for model, latent in ((vae(places=6), "4x2x3"), (vae(conditional=True), "4")):
        with looked_at(model) as context:
            title = network_drawing(context).axes[0].get_title(loc="left")
        assert f"from 1x8x8 to {latent} latent dimensions" in title.replace(TIMES, "x")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["a flow", "a map of spheres", "categories", "labels"])
def test_the_networks_of_each_kind_are_one_module_that_a_tracer_follows(kind):
    with looked_at(KINDS[kind][0]()) as context:
        module, seen = figures.autoencoder(context.space.model, context.examples.x[:1], context.labels(1))
        traced = torch.jit.trace(module, seen)
    assert module(seen).shape == (1, *IMAGE.shape)
    assert {"encoder", "z", "decoder"} == {name for name, _ in traced.named_children()}


def test_a_picture_that_a_model_cannot_have_is_refused_with_those_that_it_can():
    with looked_at(Ladder(), count=0) as context, pytest.raises(UsageError) as refused:
        require_available(context, ["samples", "traversals"])
    assert "'traversals', which needs one vector of latents" in str(refused.value)
    assert "Available for this model: kl_per_layer, reconstructions, samples, samples_by_temperature" in str(
        refused.value
    )


def test_without_images_only_a_standard_normal_says_where_to_look():
    with looked_at(vae(), count=0) as context:
        assert set(available_pictures(context)) == {"samples", "latent_grid", "traversals"}
        assert "from the origin" in PICTURES["traversals"](context).axes[0].get_title(loc="left")
    with looked_at(vae(prior=ShiftedNormal), count=0) as context:
        assert set(available_pictures(context)) == {"samples"}
    with looked_at(vae(prior=ClassNormal, conditional=True), count=0) as context:
        assert set(available_pictures(context)) == {"samples", "samples_per_class"}


def test_what_is_shown_does_not_depend_on_what_was_drawn_before(monkeypatch):
    model = vae(LogNormal)
    with looked_at(model) as context:
        alone = shown_by(monkeypatch, context, "reconstructions", "reconstructions")[1]
    with looked_at(model) as context:
        torch.rand(7)
        shown_by(monkeypatch, context, "samples", "samples")
        assert shown_by(monkeypatch, context, "reconstructions", "reconstructions")[1].equal(alone)


def test_latents_of_another_prior_are_looked_for_where_the_images_are():
    model = vae(Deterministic, Flat, size=2)
    with looked_at(model) as context:
        z = model.encode(context.examples.x).mean
        assert_close(context.space.location.mean, z.mean(0))
        assert_close(context.space.location.scale, z.std(0, correction=0))
        axes = PICTURES["latent_grid"](context).axes[0]
        middle = z.mean(0)[0].item() + 0.0
    assert axes.get_xticklabels()[1].get_text() == f"{middle:.2f}\n50%".replace("-", "\N{MINUS SIGN}")
    assert "a normal with q(z)'s mean" in axes.get_xlabel()


def test_a_kl_that_was_not_measured_is_that_of_the_images():
    with looked_at(vae(prior=ShiftedNormal)) as context:
        q = context.model.encode(context.examples.x)
        exact = 0.5 * ((q.mean - 7) ** 2 + q.variance - 1 - q.variance.log())
        assert_close(context.space.kl, exact.mean(0))
    with looked_at(vae(places=6), validation_kl=torch.arange(24.0)) as context:
        assert context.space.kl.tolist() == [15, 51, 87, 123]  # of each feature, over six places


def test_layers_have_a_kl_each_in_nats():
    with looked_at(Ladder()) as context:
        assert_close(context.layer_kl, torch.tensor([0.5 * 2 * 1.0, 0.5 * 16 * 4.0]))


def classes(images):
    """The classes that images of `Classes` are of."""
    return (images.mean((-1, -2, -3)) * IMAGE.num_classes).round().int().tolist()


def test_a_conditional_model_is_told_the_right_classes(monkeypatch):
    with looked_at(vae(kind=Classes, conditional=True)) as context:
        own = context.examples.labels.tolist()
        assert own[:4] == [2, 1, 0, 2]
        _, reconstructed, _, names = shown_by(monkeypatch, context, "reconstructions", "reconstructions")
        assert classes(reconstructed) == own[:4] and names == ["cat", "bee", "ant", "cat"]
        (samples,) = shown_by(monkeypatch, context, "samples", "samples")
        assert classes(samples) == [0, 1, 2, 0]
        rows, names = shown_by(monkeypatch, context, "samples_per_class", "sample_rows")
        assert classes(rows) == [[0] * 8, [1] * 8, [2] * 8] and names == ["ant", "bee", "cat"]
        way, _ = shown_by(monkeypatch, context, "interpolations", "interpolations")
        assert classes(way) == [[2] * 3, [0] * 3]  # of images 0 and 2
        for what in ("traversals", "latent_grid"):
            assert {label for row in classes(shown_by(monkeypatch, context, what, what)[0]) for label in row} == {2}
        monkeypatch.undo()
        assert "(class cat)" in PICTURES["latent_grid"](context).axes[0].get_title(loc="left")


def test_the_rows_of_classes_and_of_temperatures_share_their_random_numbers(monkeypatch):
    with looked_at(vae(conditional=True)) as context:
        context.model.label_features.forward = lambda z, y: nn.functional.pad(z, (0, 3))  # deaf to the class
        rows, _ = shown_by(monkeypatch, context, "samples_per_class", "sample_rows")
        assert_close(rows[0], rows[2], rtol=0, atol=0)
        assert not rows[0, 0].equal(rows[0, 1])
    with looked_at(Ladder()) as context:
        rows, names = shown_by(monkeypatch, context, "samples_by_temperature", "sample_rows")
        assert_close(rows[0], 0.6 * rows[4])
        assert names == ["0.6", "0.7", "0.8", "0.9", "1.0"]


def test_what_is_restored_is_the_corrupted_image(monkeypatch):
    model = vae()
    with looked_at(model, corrupted=lambda x: x * (torch.rand_like(x) < 0.5)) as context:
        assert "denoising" in available_pictures(context)
        clean, corrupted, restored = shown_by(monkeypatch, context, "denoising", "denoising")
        assert clean.equal(context.examples.x[:4])
        assert 0.2 < (corrupted == 0).float().mean() < 0.8
        assert_close(restored, model.reconstruct(corrupted).mean)


def test_code_usage_counts_every_place(monkeypatch):
    model, counts = vae(partial(NearestCode, num_codes=5), UniformCodes, places=6), []
    monkeypatch.setattr("vae_lab.figures.charts.code_usage", lambda seen, *_, **options: counts.extend(seen))
    with looked_at(model) as context:
        PICTURES["code_usage"](context)
        numbers = model.posterior.codes.indices(model.encode(context.examples.x).mode)
    assert counts[0].shape == (1, 5) and counts[0].sum() == 12 * 6
    assert counts[0][0].tolist() == [int((numbers == code).sum()) for code in range(5)]
