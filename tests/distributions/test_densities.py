"""Densities integrate to 1, mass functions sum to 1, and both agree with torch where torch is right."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from vae_lab.core import ImageSpec
from vae_lab.distributions.pixels import ContinuousBernoulli, DiscretizedLogisticMixture, FastBernoulli
from vae_lab.likelihoods import Bernoulli, LocationScale, LogisticMixture256, OptimalGaussian
from vae_lab.posteriors import DiagonalGaussian

GREY = ImageSpec(1, 4, 4)
BINARY = ImageSpec(1, 4, 4, levels=2)


@pytest.mark.parametrize("shape", [(4, 3, 5), (3, 5), (4, 1, 5)])
def test_the_fast_bernoulli_is_torchs(shape):
    """Value and gradient, whatever is broadcast against what, far into both tails."""
    logits = torch.linspace(-200, 200, math.prod(shape), dtype=torch.float64).reshape(shape).requires_grad_()
    x = torch.rand(4, 3, 5, dtype=torch.float64)
    found = []
    for family in (FastBernoulli, torch.distributions.Bernoulli):
        log_prob = family(logits=logits, validate_args=False).log_prob(x)
        found.append((log_prob, *torch.autograd.grad(log_prob.square().sum(), logits)))
    assert_close(*found)
    x.requires_grad_()
    FastBernoulli(logits=logits, validate_args=False).log_prob(x).sum().backward()
    assert_close(x.grad, logits.detach().expand_as(x))


@given(st.floats(-300, 300))
@settings(deadline=None, max_examples=60)
def test_the_continuous_bernoulli_integrates_to_one(logit):
    # A grid that is fine where the density is: both ends, geometrically.
    ends = torch.logspace(-9, math.log10(0.5), 4000, dtype=torch.float64)
    x = torch.cat((torch.zeros(1, dtype=torch.float64), ends, 1 - ends.flip(0), torch.ones(1, dtype=torch.float64)))
    density = ContinuousBernoulli(torch.tensor(logit, dtype=torch.float64)).log_prob(x).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1, abs=2e-4)


def test_the_continuous_bernoulli_agrees_with_torch_where_torch_is_exact():
    logits = torch.linspace(-6, 6, 101, dtype=torch.float64)
    ours, theirs = ContinuousBernoulli(logits), torch.distributions.ContinuousBernoulli(logits=logits)
    x = torch.rand(7, 101, dtype=torch.float64)
    # torch interpolates within 2e-3 of p = 1/2, where it is right to about 1e-6
    assert_close(ours.log_prob(x), theirs.log_prob(x), atol=1e-5, rtol=0)
    assert_close(ours.mean, theirs.mean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("logit", [-60.0, -3.0, -1e-3, 0.0, 2e-3, 4.0, 60.0])
def test_continuous_bernoulli_samples_have_its_mean(logit):
    torch.manual_seed(0)
    density = ContinuousBernoulli(torch.tensor(logit))
    samples = density.rsample((200_000,))
    assert samples.min() >= 0 and samples.max() <= 1
    assert samples.mean().item() == pytest.approx(density.mean.item(), abs=3e-3)


@pytest.mark.parametrize("logit", [-9.9e-3, -1e-3, 0.0, 5e-3, 9.9e-3])
def test_continuous_bernoulli_samples_near_zero_follow_their_logit(logit):
    """The same uniform number where the closed form has digits enough, in float64; and the gradient."""
    logits = torch.full((1000,), logit, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(0)
    x = ContinuousBernoulli(logits).rsample()
    x.sum().backward()
    torch.manual_seed(0)
    u = torch.rand(1000, dtype=torch.float64)
    exact = u if logit == 0 else torch.log1p(u * math.expm1(logit)) / logit
    assert_close(x.detach(), exact, atol=1e-7, rtol=0)
    assert_close(logits.grad, u * (1 - u) / 2 + u * (1 - u) * (1 - 2 * u) * logit / 3, atol=1e-7, rtol=0)


@pytest.mark.parametrize("logit", [-500.0, -90.0, 0.0, 90.0, 500.0])
def test_the_continuous_bernoullis_mean_and_samples_stay_finite(logit, monkeypatch):
    logits = torch.tensor([logit], requires_grad=True)
    ContinuousBernoulli(logits).mean.sum().backward()
    assert logits.grad.isfinite().all()
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: torch.zeros(1))  # one draw of 2^24
    assert 0 <= ContinuousBernoulli(logits).rsample() <= 1


def test_the_continuous_bernoulli_has_a_gradient_everywhere():
    logits = torch.tensor([-80.0, -1e-3, 0.0, 1e-3, 80.0], requires_grad=True)
    ContinuousBernoulli(logits).log_prob(torch.tensor(0.3)).sum().backward()
    # d/dl log p = x - E[x]
    assert_close(logits.grad, 0.3 - ContinuousBernoulli(logits.detach()).mean, atol=1e-4, rtol=0)


def mixture(channels, levels, m=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    pairs = math.comb(channels, 2)
    return DiscretizedLogisticMixture(
        logits=torch.randn(m, 1, 1, generator=g, dtype=torch.float64),
        means=torch.randn(m, channels, 1, 1, generator=g, dtype=torch.float64) * 0.7,
        log_scales=torch.randn(m, channels, 1, 1, generator=g, dtype=torch.float64) * 2 - 2,
        coefficients=torch.randn(m, pairs, 1, 1, generator=g, dtype=torch.float64),
        levels=levels,
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("channels", "levels"), [(1, 256), (1, 2), (2, 17), (3, 6)])
def test_the_logistic_mixture_sums_to_one_edges_included(channels, levels, seed):
    family = mixture(channels, levels, seed=seed)
    grid = torch.tensor(list(itertools.product(range(levels), repeat=channels)), dtype=torch.float64)
    x = (grid / (levels - 1))[:, :, None, None]
    assert family.log_prob(x).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_logistic_mixture_samples_follow_its_mass_function():
    torch.manual_seed(0)
    family = mixture(3, 4)
    grid = torch.tensor(list(itertools.product(range(4), repeat=3)), dtype=torch.float64)
    expected = family.log_prob((grid / 3)[:, :, None, None]).exp()
    drawn = (family.sample((100_000,))[..., 0, 0] * 3).round().long()
    code = drawn @ torch.tensor([16, 4, 1])
    observed = torch.bincount(code, minlength=64) / len(drawn)
    assert_close(observed.double(), expected, atol=6e-3, rtol=0)


@pytest.mark.parametrize(("narrowest", "tolerance"), [(-9, 1 / 510), (-4, 1e-4)])
@pytest.mark.parametrize("seed", range(5))
def test_the_logistic_mixtures_mean_is_the_sum_of_its_levels_times_their_mass(seed, narrowest, tolerance):
    """For grey values, near black and white as elsewhere: within half a level if components are narrower than one."""
    family = mixture(1, 256, seed=seed)
    family.log_scales, family.means = family.log_scales.clamp(min=narrowest), 1.5 * family.means
    x = torch.arange(256, dtype=torch.float64) / 255
    expected = (family.log_prob(x[:, None, None, None]).exp() * x).sum()
    assert_close(family.mean.squeeze(), expected, atol=tolerance, rtol=0)


def test_the_logistic_mixtures_mean_is_that_of_its_samples_in_colour():
    torch.manual_seed(0)
    family = mixture(3, 256)
    family.log_scales = family.log_scales.clamp(max=-3)
    assert_close(family.sample((50_000,)).mean(0), family.mean, atol=0.01, rtol=0)


def test_every_parameter_of_the_logistic_mixture_gets_a_gradient_of_its_mean():
    family = mixture(3, 256)
    family.log_scales = family.log_scales.clamp(min=-2)  # a narrow component's mean does not depend on its scale
    parameters = [p.clone().requires_grad_() for p in vars(family).values() if isinstance(p, torch.Tensor)]
    DiscretizedLogisticMixture(*parameters).mean.sum().backward()
    assert len(parameters) == 4 and all(p.grad.isfinite().all() and p.grad.all() for p in parameters)


def test_the_logistic_mixture_is_finite_at_the_smallest_scales():
    family = LogisticMixture256(ImageSpec(3, 4, 4))
    params = torch.full((2, family.num_channels, 4, 4), -50.0, requires_grad=True)
    log_px = family(params).log_prob(torch.rand(2, 3, 4, 4).mul(255).round() / 255)
    log_px.sum().backward()
    assert log_px.isfinite().all() and params.grad.isfinite().all()


def test_a_diagonal_gaussian_is_torchs_normal_and_its_logvar_is_bounded():
    params = torch.tensor([[0.5, -1.0, 0.2, -0.4]])
    posterior = DiagonalGaussian(2)(params)
    logvar = 20 * torch.tanh(params[:, 2:] / 20)
    reference = torch.distributions.Normal(params[:, :2], (logvar / 2).exp())
    z = torch.randn(3, 1, 2)
    assert_close(posterior.log_prob(z), reference.log_prob(z).sum(-1))
    extreme = DiagonalGaussian(1)(torch.tensor([[0.0, 1e6], [0.0, -1e6]], dtype=torch.float16))
    assert extreme.base_dist.scale.isfinite().all() and extreme.base_dist.scale.min() > 4e-5


def test_bernoulli_is_summed_over_pixels_and_refuses_colour():
    logits, x = torch.randn(2, 1, 4, 4), (torch.rand(2, 1, 4, 4) < 0.5).float()
    log_px = Bernoulli(BINARY)(logits).log_prob(x)
    expected = -torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
    assert_close(log_px, expected)
    with pytest.raises(ValueError, match="grey_values=true"):
        Bernoulli(ImageSpec(3, 4, 4))
    assert Bernoulli(ImageSpec(3, 4, 4), grey_values=True).num_channels == 3


@pytest.mark.parametrize("density", [torch.distributions.Normal, torch.distributions.Laplace])
@pytest.mark.parametrize("learned", [True, False])
def test_location_scale_families(density, learned):
    family = LocationScale(GREY, density, scale=0.3, learned=learned)
    params, x = torch.randn(5, 2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    expected = density(params.sigmoid(), 0.3).log_prob(x).sum((-1, -2, -3))
    assert_close(family(params).log_prob(x), expected)
    assert family.log_scale.requires_grad is learned
    with pytest.raises(ValueError, match="lies between"):
        LocationScale(GREY, density, scale=0.0)


def test_the_optimal_scale_maximises_the_likelihood_and_is_frozen_in_evaluation():
    torch.manual_seed(0)
    family = OptimalGaussian(GREY)
    params, x = torch.randn(6, 1, 4, 4), torch.rand(6, 1, 4, 4)
    best = family(params).log_prob(x).sum()
    for scale in torch.linspace(0.05, 2, 50):
        fixed = LocationScale(GREY, torch.distributions.Normal, float(scale))
        assert fixed(params).log_prob(x).sum() <= best + 1e-3
    mse = (x - params.sigmoid()).square().mean()
    family.fit((x - params.sigmoid()).square())
    assert_close(family.mse, mse)
    family.eval()
    other = torch.rand(6, 1, 4, 4)
    expected = torch.distributions.Normal(params.sigmoid(), mse.sqrt()).log_prob(other).sum((1, 2, 3))
    assert_close(family(params).log_prob(other), expected)
    assert_close(family.mse, mse)
