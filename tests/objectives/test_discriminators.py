"""Regularizers with a discriminator: whose gradients reach whom, and what a trained one knows exactly."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal
from torch.nn.functional import normalize
from torch.testing import assert_close

from vae_lab.core import ImageSpec, Latent, LatentSpec, RegularizerInputs, Trace, TrainingSpec
from vae_lab.distributions.base import Improper
from vae_lab.objectives import Constant, Objective, elbo
from vae_lab.objectives.regularizers import AdversarialImages, AdversarialPosterior, DensityRatio, Perceptual
from vae_lab.objectives.regularizers.adversarial import permute_dimensions
from vae_lab.objectives.regularizers.base import non_saturating_loss, real_fake_cross_entropy, sample_prior
from vae_lab.objectives.regularizers.images import (
    ImageDiscriminator,
    apply_flips,
    feature_distance,
    straight_through_bernoulli,
    unit_norm_features,
)
from vae_lab.posteriors import DiagonalGaussian

GREY, BINARY = ImageSpec(1, 8, 9), ImageSpec(1, 8, 9, levels=2)
SMALL = {
    "density_ratio": partial(DensityRatio, weight=2.0, hidden=(16, 16)),
    "adversarial_posterior": partial(AdversarialPosterior, weight=2.0, hidden=(16,)),
    "adversarial_images": partial(AdversarialImages, weight=2.0, width=4),
    "perceptual": partial(Perceptual, weight=2.0, width=4),
}
EVERY = pytest.mark.parametrize("name", SMALL)


def spec(image=GREY, *latents):
    return TrainingSpec(image, latents or (vectors(3, image=image),), 100)


def vectors(*shape, image=GREY):
    return LatentSpec("vector", shape, image)


def standard_normal(*shape):
    return Independent(Normal(torch.zeros(shape), torch.ones(shape)), len(shape))


class Tiny(nn.Module):
    """A linear VAE: what a regularizer sees of it is all that it does."""

    def __init__(self, image=GREY, latent_dim=3):
        super().__init__()
        self.image, self.family = image, DiagonalGaussian(latent_dim)
        self.encoder = nn.Linear(image.num_dims, self.family.num_params)
        self.decoder = nn.Linear(latent_dim, image.num_dims)

    def decode(self, z):
        logits = self.decoder(z).unflatten(-1, self.image.shape)
        return Independent(Bernoulli(logits=logits, validate_args=False), 3)

    def forward(self, x, num_samples=2):
        posterior = self.family(self.encoder(x.flatten(1)))
        z = posterior.rsample((num_samples,))
        trace = Trace(self.decode(z), (Latent(z, posterior, standard_normal(self.family.num_features)),))
        return RegularizerInputs(trace, x, self.decode, self.modules())


def shown(image=GREY, batch=5, num_samples=2):
    """A model, and what it made of random images."""
    torch.manual_seed(0)
    model = Tiny(image)
    return model, model(torch.rand(batch, *image.shape).round(decimals=8 if image.levels > 2 else 0), num_samples)


def latents_seen(z, prior=None):
    """An observation of these latents alone, (S, B, *event)."""
    return RegularizerInputs(Trace(None, (Latent(z, None, prior),)), None, None, ())


def images_seen(x, means):
    """An observation of images and the means of their reconstructions, (S, B, C, H, W)."""
    return RegularizerInputs(Trace(SimpleNamespace(mean=means), ()), x, None, ())


def trained(regularizer, draw, steps, lr):
    """The regularizer after its discriminator has learnt from what `draw` shows it."""
    optimizer = torch.optim.Adam(regularizer.discriminator.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        regularizer.discriminator_loss(draw()).backward()
        optimizer.step()
    return regularizer


def undecided(regularizer):
    """The regularizer with a discriminator that gives every logit 0."""
    last = [layer for layer in regularizer.discriminator.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return regularizer


def gradients(name, image, *parts):
    """Of the model's and the discriminator's parameters, after one backward pass of the named parts together."""
    model, seen = shown(image)
    regularizer = SMALL[name](spec(image))
    values = []
    for part in parts:
        torch.manual_seed(len(part))  # the same noise whatever else is computed
        values.append(regularizer(seen).mean() if part == "penalty" else regularizer.discriminator_loss(seen))
    sum(values).backward()
    return [[p.grad for p in module.parameters()] for module in (model, regularizer)]


@EVERY
@pytest.mark.parametrize("image", [GREY, BINARY])
def test_a_penalty_reaches_the_model_alone_and_a_critics_loss_the_critic_alone(name, image):
    model, none = gradients(name, image, "penalty")
    assert all(gradient is None for gradient in none)
    touched = model[:2] if name in ("density_ratio", "adversarial_posterior") else model
    assert all(gradient.abs().sum() > 0 for gradient in touched)
    none, discriminator = gradients(name, image, "discriminator_loss")
    assert all(gradient is None for gradient in none)
    assert all(gradient.isfinite().all() for gradient in discriminator)
    both = gradients(name, image, "penalty", "discriminator_loss")
    assert_close(both, [model, discriminator], rtol=0, atol=0)


@EVERY
def test_a_penalty_is_finite_for_one_image(name):
    model, seen = shown(BINARY, batch=1)
    regularizer = SMALL[name](spec(BINARY))
    (regularizer(seen).mean() + regularizer.discriminator_loss(seen)).backward()
    assert all(p.grad.isfinite().all() for p in (*model.parameters(), *regularizer.parameters()) if p.grad is not None)


@EVERY
def test_samples_are_averaged(name):
    torch.manual_seed(0)
    regularizer = SMALL[name](spec(), **({"prior_samples": False} if name == "adversarial_images" else {}))
    z, means, x = torch.randn(2, 5, 3), torch.rand(2, 5, *GREY.shape), torch.rand(5, *GREY.shape)

    def penalty(samples):
        trace = Trace(SimpleNamespace(mean=means[samples]), (Latent(z[samples], None, None),))
        return regularizer(RegularizerInputs(trace, x, None, ()))

    assert penalty([0]).shape == (5,)
    assert_close(penalty([0, 1]), (penalty([0]) + penalty([1])) / 2)


def test_a_critic_that_cannot_decide_costs_what_chance_costs():
    _, seen = shown()
    ratio, posterior = (undecided(SMALL[name](spec())) for name in ("density_ratio", "adversarial_posterior"))
    images = undecided(AdversarialImages(spec(), 1.0, feature_weight=0.0, width=4, spectral_norm=False))
    assert_close(ratio(seen), torch.zeros(5))
    assert_close(posterior(seen), torch.full((5,), math.log(2)))
    assert_close(images(seen), torch.full((5,), math.log(2)))
    for regularizer in (ratio, posterior, images):
        assert_close(regularizer.discriminator_loss(seen), torch.tensor(math.log(2)))
    assert_close(undecided(SMALL["perceptual"](spec())).discriminator_loss(seen), torch.tensor(math.log(4)))


def test_telling_apart_is_torchs_cross_entropy():
    true, false = torch.randn(7) * 30, torch.randn(7) * 30
    logits, target = torch.cat((true, false)), torch.cat((torch.ones(7), torch.zeros(7)))
    assert_close(real_fake_cross_entropy(true, false), nn.functional.binary_cross_entropy_with_logits(logits, target))
    assert_close(real_fake_cross_entropy(true, false, false), real_fake_cross_entropy(true, false))
    assert_close(non_saturating_loss(true), -true.sigmoid().double().log().float(), rtol=1e-4, atol=1e-4)


# Density ratio


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_a_trained_critic_knows_the_total_correlation_of_a_gaussian(rho):
    torch.manual_seed(0)
    joint = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, rho], [rho, 1.0]]))
    regularizer = DensityRatio(spec(GREY, vectors(2)), 1.0, hidden=(64, 64))
    trained(regularizer, lambda: latents_seen(joint.sample((2, 128))), steps=250, lr=1e-3)
    estimate = regularizer(latents_seen(joint.sample((1, 20_000)))).mean().item()
    assert estimate == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.05)


@pytest.mark.parametrize("event", [(3,), (2, 3, 4)])
def test_permuting_keeps_the_marginals_and_breaks_the_dependence(event):
    torch.manual_seed(0)
    z = torch.randn(2, 2000, *(1 for _ in event)) + 0.1 * torch.randn(2, 2000, *event)
    apart = permute_dimensions(z)
    assert apart.shape == z.shape
    flat, mixed = z.flatten(0, 1).flatten(1), apart.flatten(0, 1).flatten(1)
    assert torch.equal(mixed.sort(0).values, flat.sort(0).values)
    off_diagonal = ~torch.eye(flat.shape[1], dtype=torch.bool)
    assert torch.corrcoef(flat.T)[off_diagonal].min() > 0.95
    assert torch.corrcoef(mixed.T)[off_diagonal].abs().max() < 0.08


# Adversarial autoencoder


def test_latents_trained_against_the_critic_go_to_the_prior():
    torch.manual_seed(0)
    prior = standard_normal(2)
    regularizer = AdversarialPosterior(spec(GREY, vectors(2)), 1.0, hidden=(32,))
    mean, log_scale = nn.Parameter(torch.full((2,), 2.0)), nn.Parameter(torch.full((2,), -1.0))
    groups = [{"params": [mean, log_scale], "lr": 2e-2}, {"params": regularizer.discriminator.parameters(), "lr": 1e-2}]
    optimizer = torch.optim.Adam(groups)
    for _ in range(300):
        seen = latents_seen(Normal(mean, log_scale.exp()).rsample((1, 128)), prior)
        optimizer.zero_grad()
        (regularizer(seen).mean() + regularizer.discriminator_loss(seen)).backward()
        optimizer.step()
    assert_close(mean.detach(), torch.zeros(2), atol=0.25, rtol=0)
    assert_close(log_scale.detach(), torch.zeros(2), atol=math.log(2), rtol=0)  # it goes to and fro around 0


def test_a_prior_of_labels_is_drawn_for_each_image():
    prior = Independent(Normal(torch.arange(12.0).view(4, 3), 0.01), 1)
    drawn = sample_prior(Latent(None, None, prior), (2, 4))
    assert_close(drawn, prior.mean.expand(2, 4, 3), atol=0.1, rtol=0)


@pytest.mark.parametrize("name", ["adversarial_posterior", "adversarial_images"])
def test_a_prior_without_samples_is_refused(name):
    _, seen = shown()
    latent = seen.trace.latents[0]._replace(prior=Improper((), (3,)))
    seen = seen._replace(trace=seen.trace._replace(latents=(latent,)))
    with pytest.raises(ValueError, match=r"has no samples\.\nChoose one that has, such as model/prior=standard_normal"):
        SMALL[name](spec()).discriminator_loss(seen)
    AdversarialImages(spec(), 1.0, prior_samples=False, width=4).discriminator_loss(seen)


# VAE-GAN


def test_drawn_pixels_are_binary_and_have_the_gradient_of_their_chances():
    torch.manual_seed(0)
    means = torch.linspace(0, 1, 11).expand(20_000, 11).clone().requires_grad_()
    pixels = straight_through_bernoulli(means)
    weights = torch.randn(20_000, 11)
    (pixels * weights).sum().backward()
    assert set(pixels.unique().tolist()) == {0.0, 1.0}
    assert_close(pixels.mean(0), torch.linspace(0, 1, 11), atol=0.015, rtol=0)
    assert torch.equal(means.grad, weights)
    assert straight_through_bernoulli(torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize("image", [GREY, BINARY])
def test_grey_means_of_binary_images_do_not_give_the_model_away(image):
    """The means of noise are exact here: nothing but their greyness tells them from the images."""
    torch.manual_seed(0)
    means = torch.full((1, 64, *GREY.shape), 0.5)
    regularizer = AdversarialImages(spec(image), 1.0, prior_samples=False, width=4, spectral_norm=False)

    def noise():
        return images_seen(torch.bernoulli(means[0]), means)

    trained(regularizer, noise, steps=40, lr=1e-2)
    loss = torch.stack([regularizer.discriminator_loss(noise()) for _ in range(10)]).mean().item()
    assert loss == pytest.approx(math.log(2), abs=0.05) if image is BINARY else loss < 0.05


def test_decoded_draws_from_the_prior_count_half():
    torch.manual_seed(0)
    _, seen = shown()
    alone, both = (AdversarialImages(spec(), 1.0, feature_weight=0.0, prior_samples=p, width=4) for p in (False, True))
    both.load_state_dict(alone.state_dict())
    torch.manual_seed(1)
    penalty = both(seen)
    torch.manual_seed(1)
    samples = seen.decode(torch.randn(5, 3)).mean
    of_samples = non_saturating_loss(both.discriminator.eval()(samples).logits)[:, 0]
    assert_close(penalty, (alone.eval()(seen) + of_samples) / 2, rtol=1e-3, atol=1e-4)  # but for a power iteration


def test_the_feature_weight_is_of_half_the_squared_distance_in_the_middle_map():
    image = ImageSpec(3, 17, 24)
    torch.manual_seed(0)
    x, means = torch.rand(4, *image.shape), torch.rand(2, 4, *image.shape)
    options = {"prior_samples": False, "width": 4, "spectral_norm": False}
    plain, featured = (AdversarialImages(spec(image), 1.0, feature_weight=w, **options) for w in (0.0, 0.3))
    plain.load_state_dict(featured.state_dict())
    seen = images_seen(x, means)
    first_two = nn.Sequential(*featured.discriminator.stages[:2])
    distance = torch.stack([(first_two(m) - first_two(x)).square().flatten(1).sum(1) / 2 for m in means]).mean(0)
    assert len(featured.discriminator.stages) == 3
    assert_close(featured(seen) - plain(seen), 0.3 * distance)


def test_spectral_norms_are_1_and_move_only_while_the_critic_trains():
    _, seen = shown()
    regularizer = SMALL["adversarial_images"](spec())
    before = copy.deepcopy(regularizer.state_dict())
    regularizer(seen)
    assert_close(regularizer.state_dict(), before, rtol=0, atol=0)
    with torch.no_grad():
        for _ in range(30):
            regularizer.discriminator_loss(seen)
    layers = [m for m in regularizer.discriminator.eval().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    largest = torch.stack([torch.linalg.matrix_norm(layer.weight.flatten(1), 2) for layer in layers])
    assert_close(largest.detach(), torch.ones(len(layers)), atol=0.02, rtol=0)


# Perceptual distance


def test_the_perceptual_distance_is_that_of_normalised_features():
    torch.manual_seed(0)
    regularizer = Perceptual(spec(), 1.0, width=4)
    x, means = torch.rand(5, *GREY.shape), torch.rand(2, 5, *GREY.shape)
    expected = torch.zeros(5)
    for sample in means:
        a, b = x, sample
        for stage in regularizer.discriminator.stages:
            a, b = stage(a), stage(b)
            expected += (normalize(a, dim=1) - normalize(b, dim=1)).square().sum(1).mean((1, 2)).detach() / 2
    assert_close(regularizer(images_seen(x, means)), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(regularizer(images_seen(x, x.expand(2, *x.shape))), torch.zeros(5))


def test_features_of_zero_have_a_finite_gradient():
    features = torch.zeros(2, 3, 4, 4, requires_grad=True)
    feature_distance(features, torch.ones(2, 3, 4, 4)).sum().backward()
    assert features.grad.isfinite().all()
    assert torch.equal(unit_norm_features(torch.zeros(1, 3, 2, 2)), torch.zeros(1, 3, 2, 2))


def test_the_four_ways_of_showing_an_image():
    x = torch.rand(4, 3, 5, 6)
    expected = (x[0], x[1].flip(-1), x[2].flip(-2), x[3].rot90(2, (-2, -1)))
    assert torch.equal(apply_flips(x, torch.arange(4)), torch.stack(expected))


# All of them


@pytest.mark.parametrize(("height", "width"), [(2, 2), (8, 8), (28, 28), (9, 30)])
def test_an_image_critic_takes_any_size(height, width):
    judged = ImageDiscriminator((3, height, width), 4, 8, max_width=16)(torch.rand(2, 3, height, width))
    assert judged.logits.shape == (2, 4)
    assert [f.shape[1] for f in judged.features] == [8, 16, 16][: len(judged.features)]
    assert all(f.shape[-1] == width >> (i + 1) for i, f in enumerate(judged.features))


def test_an_objective_finds_its_critics_and_sums_what_they_minimise():
    objective = Objective(elbo, Constant(), spec(), regularizers=SMALL)
    _, seen = shown()
    assert objective.discriminators == list(objective.regularizers.values())
    alone = copy.deepcopy(objective.regularizers).values()
    torch.manual_seed(1)
    total = objective.discriminator_loss(seen)
    torch.manual_seed(1)
    assert_close(total, sum(regularizer.discriminator_loss(seen) for regularizer in alone))


@EVERY
def test_a_model_of_several_layers_is_refused_or_only_reconstructs(name):
    ladder = spec(GREY, vectors(3), vectors(3))
    if name in ("density_ratio", "adversarial_posterior"):
        with pytest.raises(ValueError, match=rf"{name}.*2 layers"):
            SMALL[name](ladder)
        return
    _, seen = shown()
    regularizer = SMALL[name](ladder)
    seen = seen._replace(decode=None, trace=seen.trace._replace(latents=seen.trace.latents * 2))
    assert regularizer(seen).isfinite().all() and regularizer.discriminator_loss(seen).isfinite()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *((name, {"weight": -1.0}, rf"{name}\.weight") for name in SMALL),
        *((name, {"discriminator_lr": 0.0}, rf"{name}\.discriminator_lr") for name in SMALL),
        *((name, {"hidden": ()}, f"{name}: .*hidden layer") for name in ("density_ratio", "adversarial_posterior")),
        *((name, {"width": 0}, f"{name}: .*hidden layer") for name in ("adversarial_images", "perceptual")),
        ("adversarial_images", {"feature_weight": -0.1}, "feature_weight"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        SMALL[name](spec(), **options)


@pytest.mark.parametrize(
    ("name", "latent", "message"),
    [
        ("density_ratio", LatentSpec("sphere", (3,), GREY), "density_ratio.*kind"),
        ("adversarial_posterior", LatentSpec("codes", (3,), GREY), "adversarial_posterior.*kind"),
        ("density_ratio", vectors(1), "latent_dim=1"),
    ],
)
def test_latents_that_cannot_be_judged_are_refused(name, latent, message):
    with pytest.raises(ValueError, match=message):
        SMALL[name](spec(GREY, latent))
