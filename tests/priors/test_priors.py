"""Priors against mixtures and Gaussians written plainly with torch.distributions, and their fits against known data."""

import copy
import math

import pytest
import torch
from torch.distributions import (
    AffineTransform,
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch.testing import assert_close

from vae_lab.core import ImageSpec, LatentSpec, PriorInputs
from vae_lab.distributions.gaussians import mixture
from vae_lab.posteriors import Deterministic, DiagonalGaussian, FullCovarianceGaussian, VonMisesFisher
from vae_lab.priors import ClassGaussian, Flat, FullGaussian, GaussianMixture, StandardNormal, UniformSphere, VampPrior
from vae_lab.priors.temperature import with_temperature

IMAGE = ImageSpec(1, 4, 4, num_classes=3)
SHAPES = [(4,), (4, 2, 3)]


def latent(shape=(4,), kind="vector", image=IMAGE):
    return LatentSpec(kind, shape, image)


class Encoder(torch.nn.Module):
    """The smallest model that a VampPrior can be a prior of."""

    def __init__(self, family, spatial_shape=()):
        super().__init__()
        self.family, self.spatial_shape = family, spatial_shape
        self.layer = torch.nn.Linear(16, family.num_params * math.prod(spatial_shape))

    def forward(self, x):
        return self.family(self.layer(x.flatten(1)).view(len(x), -1, *self.spatial_shape))


def perturbed(prior):
    """With every parameter away from what it starts with."""
    for parameter in prior.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return prior


def make(name, shape):
    """A prior, and what it is given for five images."""
    if name == "vamp":
        encoder = Encoder(DiagonalGaussian(shape[0]), shape[1:])
        return VampPrior(latent(shape), 6), PriorInputs(encode=encoder)
    makers = {
        "standard_normal": StandardNormal,
        "gaussian_mixture": lambda spec: perturbed(GaussianMixture(spec, 6)),
        "class_gaussian": lambda spec: perturbed(ClassGaussian(spec)),
        "full_gaussian": lambda spec: perturbed(FullGaussian(spec)),
    }
    return makers[name](latent(shape)), PriorInputs(y=torch.tensor([0, 2, 1, 1, 0]))


NAMES = ["standard_normal", "gaussian_mixture", "class_gaussian", "full_gaussian", "vamp"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_prior_scores_latents_has_samples_and_trains(name, shape):
    torch.manual_seed(0)
    prior, given = make(name, shape)
    prior = copy.deepcopy(prior)
    p = prior(given)
    assert p.event_shape == shape
    assert p.batch_shape == ((5,) if name == "class_gaussian" else ())
    z = torch.randn(7, 5, *shape, requires_grad=True)
    log_pz = p.log_prob(z)
    assert log_pz.shape == (7, 5)
    log_pz.sum().backward()
    assert all(weight.grad is not None and (weight.grad != 0).any() for weight in prior.parameters())
    assert (z.grad != 0).all()
    assert p.sample((3,)).shape == (3, *p.batch_shape, *shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
def test_a_temperature_multiplies_the_spread_around_each_mean(name, shape, temperature):
    """Scales multiplied by t: (z - mean) / t under the tempered prior is as (z - mean) under the prior."""
    torch.manual_seed(0)
    prior, given = make(name, shape)
    p = prior(given)
    t = with_temperature(p, temperature)
    assert with_temperature(p, 1.0) is p
    assert type(t) is type(p)
    if name in ("gaussian_mixture", "vamp"):
        assert torch.equal(t.mixture_distribution.probs, p.mixture_distribution.probs)
        p, t = p.component_distribution, t.component_distribution
    if name == "full_gaussian" and len(shape) > 1:
        p, t = p.base_dist, t.base_dist
    assert_close(t.mean, p.mean)
    assert_close(t.stddev, temperature * p.stddev)


def test_a_flows_temperature_is_its_bases():
    flow = TransformedDistribution(Independent(Normal(torch.zeros(3), torch.ones(3)), 1), [AffineTransform(2.0, 5.0)])
    t = with_temperature(flow, 0.5)
    reference = Independent(Normal(torch.full((3,), 2.0), torch.full((3,), 2.5)), 1)
    z = torch.randn(6, 3)
    assert_close(t.log_prob(z), reference.log_prob(z))


@pytest.mark.parametrize(("prior", "kind"), [(UniformSphere, "sphere"), (Flat, "vector")])
def test_what_has_no_scale_has_no_temperature(prior, kind):
    p = prior(latent(kind=kind))()
    assert with_temperature(p, 1.0) is p
    with pytest.raises(ValueError, match=r"temperature=0.5: .* use 1"):
        with_temperature(p, 0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mixtures_density_is_torchs_and_so_are_its_gradients(shape):
    torch.manual_seed(0)
    means, scales = torch.randn(6, *shape), torch.exp(torch.randn(6, *shape) - 1)
    inputs = [torch.randn(3, 5, *shape), means, scales, torch.randn(6)]
    inputs = [t.double().requires_grad_() for t in inputs]

    def log_pz(make, z, means, scales, logits):
        return make(logits, Independent(Normal(means, scales), len(shape))).log_prob(z)

    plain = log_pz(lambda logits, c: MixtureSameFamily(Categorical(logits=logits), c), *inputs)
    ours = log_pz(mixture, *inputs)
    assert_close(ours, plain)
    weights = torch.randn_like(plain)
    theirs = torch.autograd.grad((weights * plain).sum(), inputs)
    assert_close(torch.autograd.grad((weights * ours).sum(), inputs), theirs)
    in_float32 = log_pz(mixture, *(t.detach().float() for t in inputs))
    assert in_float32.dtype == torch.float32
    assert_close(in_float32.double(), plain.detach(), rtol=1e-5, atol=1e-4)


def test_a_mixture_of_sharp_components_keeps_its_digits_under_autocast():
    torch.manual_seed(0)
    means, scales = 3 * torch.randn(20, 8), torch.full((20, 8), 1e-3)
    z = means[3] + scales[3] * torch.randn(5, 8)
    exact = MixtureSameFamily(
        Categorical(logits=torch.zeros(20).double()), Independent(Normal(means.double(), scales.double()), 1)
    ).log_prob(z.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = mixture(torch.zeros(20), Independent(Normal(means, scales), 1)).log_prob(z)
    assert_close(ours.double(), exact, atol=1e-4, rtol=0)


def test_mixtures_integrate_to_one_in_one_and_two_dimensions():
    torch.manual_seed(0)
    grid = torch.linspace(-15, 15, 601)
    line = GaussianMixture(latent((1,)), 4, spread=3.0)()
    assert line.log_prob(grid.unsqueeze(1)).exp().sum().item() * 0.05 == pytest.approx(1, abs=1e-4)
    plane = perturbed(GaussianMixture(latent((2,)), 4, spread=3.0))()
    points = torch.cartesian_prod(grid, grid)
    assert plane.log_prob(points).exp().sum().item() * 0.05**2 == pytest.approx(1, abs=1e-4)


def test_mixture_samples_have_its_moments_and_its_weights():
    torch.manual_seed(0)
    means, scales = torch.tensor([[-5.0, 0.0], [5.0, 1.0], [0.0, 9.0]]), torch.tensor([[1.0, 0.1]]).expand(3, 2)
    p = mixture(torch.tensor([0.2, 0.5, 0.3]).log(), Independent(Normal(means, scales), 1))
    z = p.sample((20_000,))
    assert_close(z.mean(0), p.mean, atol=0.1, rtol=0)
    assert_close(z.var(0), p.variance, rtol=0.03, atol=0)
    nearest = torch.cdist(z, means).argmin(1)
    assert_close(nearest.bincount() / len(z), torch.tensor([0.2, 0.5, 0.3]), atol=0.015, rtol=0)


FAMILIES = [(DiagonalGaussian, "vector"), (FullCovarianceGaussian, "vector"), (VonMisesFisher, "sphere")]


@pytest.mark.parametrize("spatial_shape", [(), (2, 2)])
@pytest.mark.parametrize(("family", "kind"), FAMILIES)
def test_vamp_is_the_plain_mixture_of_the_posteriors_of_its_images(family, kind, spatial_shape):
    torch.manual_seed(0)
    encoder = Encoder(family(3), spatial_shape)
    prior = VampPrior(latent((3, *spatial_shape), kind), 6)
    assert kind in prior.kinds and prior.needs_encoder
    p = prior(PriorInputs(encode=encoder))
    components = [encoder(u.unsqueeze(0)) for u in prior.pseudo_inputs]
    z = encoder(torch.rand(5, 1, 4, 4)).rsample((7,))
    plain = torch.stack([q.log_prob(z) for q in components]).logsumexp(0) - math.log(6)
    assert_close(p.log_prob(z), plain)
    assert p.sample((11,)).shape == (11, 3, *spatial_shape)
    wanted = [prior.weights, *encoder.parameters()]
    gradients = torch.autograd.grad(p.log_prob(z.detach()).sum(), wanted)
    assert all((g != 0).any(0).all() for g in gradients)


def test_pseudo_inputs_are_images_that_differ_from_the_start():
    torch.manual_seed(0)
    images = VampPrior(latent(), 50).pseudo_inputs
    assert 0 < images.min() < 0.1 and 0.9 < images.max() < 1
    assert torch.pdist(images.flatten(1)).min() > 0.3


def test_class_gaussians_are_one_for_each_label():
    torch.manual_seed(0)
    prior = perturbed(ClassGaussian(latent()))
    y, z = torch.tensor([2, 0, 2]), torch.randn(6, 3, 4)
    expected = [prior(PriorInputs(y=label.unsqueeze(0))).log_prob(z[:, i : i + 1]) for i, label in enumerate(y)]
    assert_close(prior(PriorInputs(y=y)).log_prob(z), torch.cat(expected, 1))
    assert_close(ClassGaussian(latent())(PriorInputs(y=y)).log_prob(z), StandardNormal(latent())().log_prob(z))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_full_gaussian_is_fitted_to_mean_and_covariance(shape):
    torch.manual_seed(0)
    size = math.prod(shape)
    mix = torch.randn(size, size)
    z = (torch.randn(500, size) @ mix + 3).view(500, *shape)
    prior = FullGaussian(latent(shape))
    prior.fit(z)
    p, flat = prior(), z.flatten(1)
    reference = MultivariateNormal(flat.mean(0).double(), covariance_matrix=flat.double().T.cov())
    assert_close(p.log_prob(z).double(), reference.log_prob(flat.double()), rtol=1e-3, atol=1e-2)
    assert_close(p.sample((5000,)).flatten(1).mean(0), flat.mean(0), atol=0.4 * math.sqrt(size / 4), rtol=0)


def test_a_full_gaussian_is_fitted_where_latents_have_collapsed():
    z = torch.zeros(50, 4)
    z[:, 0] = torch.randn(50)
    prior = FullGaussian(latent())
    prior.fit(z)
    assert prior().log_prob(z).isfinite().all()
    assert_close(prior().stddev[1:], torch.full((3,), 1e-3))
    with pytest.raises(ValueError, match="at least 2 latents"):
        prior.fit(z[:1])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mixture_is_fitted_by_expectation_maximisation(shape):
    torch.manual_seed(0)
    size = math.prod(shape)
    means, scales, weights = 6 * torch.randn(3, size), torch.rand(3, size) + 0.2, torch.tensor([0.5, 0.3, 0.2])
    known = MixtureSameFamily(Categorical(weights), Independent(Normal(means, scales), 1))
    z = known.sample((3000,))
    prior = GaussianMixture(latent(shape), 3)
    prior.fit(z.view(-1, *shape))
    order = torch.cdist(means, prior.means.detach().flatten(1)).argmin(1)
    assert_close(prior.means.detach().flatten(1)[order], means, atol=0.15, rtol=0)
    assert_close(prior.logits.detach().softmax(0)[order], weights, atol=0.04, rtol=0)
    assert_close(prior().component_distribution.stddev.detach().flatten(1)[order], scales, atol=0.1, rtol=0.1)
    fresh = known.sample((2000,))
    assert_close(prior().log_prob(fresh.view(-1, *shape)).mean(), known.log_prob(fresh).mean(), atol=0.05, rtol=0)


@pytest.mark.parametrize("shape", [(3,), (3, 2, 2)])
def test_the_uniform_sphere_has_the_density_of_each_place(shape):
    p = UniformSphere(latent(shape, "sphere"))()
    z = p.sample((7, 5))
    assert (p.batch_shape, p.event_shape, z.shape) == ((), shape, (7, 5, *shape))
    assert_close(z.norm(dim=2), torch.ones(7, 5, *shape[1:]))
    assert_close(p.log_prob(z), torch.full((7, 5), -math.log(4 * math.pi) * math.prod(shape[1:])))


@pytest.mark.parametrize("shape", SHAPES)
def test_flat_has_no_density_and_no_samples(shape):
    prior = Flat(latent(shape))
    assert torch.equal(prior().log_prob(torch.randn(7, 5, *shape)), torch.zeros(7, 5))
    assert prior.kinds == ("vector", "sphere", "codes")
    assert not prior.is_density
    with pytest.raises(NotImplementedError, match=r"vae_lab\.fit_prior"):
        prior().sample((3,))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: GaussianMixture(latent(), 0), r"model\.prior\.num_components is at least 1; found 0"),
        (lambda: GaussianMixture(latent(), 2, spread=-1.0), r"model\.prior\.spread"),
        (lambda: GaussianMixture(latent(), 5).fit(torch.randn(4, 4)), r"num_components=5.*found 4"),
        (lambda: VampPrior(latent(), 0), r"model\.prior\.num_pseudo_inputs is at least 1; found 0"),
        (lambda: VampPrior(latent())(PriorInputs()), r"model/prior=vamp.*needs an encoder"),
        (lambda: VampPrior(latent())(PriorInputs(encode=Encoder(Deterministic(4)))), r"posterior=.*found Delta"),
        (lambda: ClassGaussian(latent(image=ImageSpec(1, 4, 4))), r"no labels.\nChoose data=mnist"),
        (lambda: ClassGaussian(latent())(PriorInputs()), r"give it the labels"),
    ],
)
def test_wrong_requests_are_refused_with_what_to_choose(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
