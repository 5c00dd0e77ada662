"""Latents on the unit sphere: Bessel functions against scipy, densities that integrate to 1, exact gradients."""

import math

import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import VonMises, kl_divergence
from torch.nn.functional import normalize
from torch.testing import assert_close

from vae_lab.distributions.sphere import SphericalUniform, VonMisesFisher, log_area, log_bessel_and_ratio

CASES = [(2, 0.01), (2, 3.0), (2, 5e3), (3, 10.0), (5, 0.5), (16, 40.0), (64, 1e3), (64, 1e5)]


def von_mises_fisher(dim, concentration, seed=0):
    generator = torch.Generator().manual_seed(seed)
    direction = normalize(torch.randn(dim, dtype=torch.float64, generator=generator), dim=0)
    return VonMisesFisher(direction, torch.tensor(concentration, dtype=torch.float64))


@given(st.integers(0, 400), st.floats(-3, 5))
@settings(deadline=None, max_examples=100)
def test_bessel_functions_are_scipys(twice_the_order, log10_x):
    order, x = twice_the_order / 2, 10.0**log10_x
    log_value, ratio = log_bessel_and_ratio(order, torch.tensor(x, dtype=torch.float64))
    here, above = scipy.special.ive([order, order + 1], x)
    if above > 1e-290:  # scipy's leave the range of float64
        assert log_value.item() == pytest.approx(math.log(here), abs=1e-12, rel=1e-13)
        assert ratio.item() == pytest.approx(above / here, rel=2e-12)


@given(st.integers(0, 2000), st.floats(-3, 5))
@settings(deadline=None, max_examples=40)
def test_bessel_derivatives_are_those_of_the_differential_equation(twice_the_order, log10_x):
    order, x = twice_the_order / 2, torch.tensor(10.0**log10_x, dtype=torch.float64, requires_grad=True)
    log_value, ratio = log_bessel_and_ratio(order, x)
    slopes = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in (log_value, ratio)]
    assert_close(slopes[0], ratio + order / x - 1, rtol=1e-9, atol=1e-12)  # DLMF 10.29.2
    assert_close(slopes[1], 1 - ratio**2 - (2 * order + 1) / x * ratio, rtol=1e-6, atol=1e-12)
    assert 0 < ratio < 1


def test_bessel_functions_can_be_differentiated_twice():
    x = torch.tensor([0.02, 0.9, 7.0, 60.0], dtype=torch.float64, requires_grad=True)
    for order in (0.0, 31.5):
        assert torch.autograd.gradcheck(lambda x, order=order: log_bessel_and_ratio(order, x), (x,))
        assert torch.autograd.gradgradcheck(lambda x, order=order: log_bessel_and_ratio(order, x), (x,))


@pytest.mark.parametrize("concentration", [1e-3, 0.7, 30.0, 1e5])
def test_on_the_circle_it_is_torchs_von_mises(concentration):
    angles = torch.linspace(-3.1, 3.1, 50, dtype=torch.float64)
    q = von_mises_fisher(2, concentration)
    z = torch.stack((angles.cos(), angles.sin()), -1)
    reference = VonMises(torch.atan2(q.direction[1], q.direction[0]), q.concentration)
    assert_close(q.log_prob(z), reference.log_prob(angles), rtol=1e-6, atol=1e-6)  # torch's Bessel has 7 digits


@pytest.mark.parametrize("concentration", [1e-3, 0.7, 30.0, 1e3])
def test_the_density_integrates_to_one_on_the_circle_and_on_the_sphere(concentration):
    circle = von_mises_fisher(2, concentration)
    angles = torch.arange(4000, dtype=torch.float64) * (2 * math.pi / 4000)
    density = circle.log_prob(torch.stack((angles.cos(), angles.sin()), -1)).exp()
    assert density.mean().item() * 2 * math.pi == pytest.approx(1, abs=1e-12)

    sphere = von_mises_fisher(3, concentration)
    height = (torch.arange(3000, dtype=torch.float64) + 0.5) / 1500 - 1  # of equal areas: Archimedes
    around = angles[::10]
    radius = (1 - height**2).sqrt().unsqueeze(-1)
    points = (radius * around.cos(), radius * around.sin(), height.unsqueeze(-1).expand(-1, 400))
    density = sphere.log_prob(torch.stack(points, -1)).exp()
    assert density.mean().item() * 4 * math.pi == pytest.approx(1, abs=3e-3 if concentration > 100 else 1e-5)


def angle_density(q, angles):
    """Of the angle between a sample and the direction: the density there, times the area of its circle of latitude."""
    dim = q.event_shape[0]
    across = normalize(torch.eye(dim, dtype=torch.float64)[0] - q.direction[0] * q.direction, dim=0)
    z = angles.cos().unsqueeze(-1) * q.direction + angles.sin().unsqueeze(-1) * across
    latitude = log_area(dim - 1) if dim > 2 else math.log(2)
    return torch.exp(q.log_prob(z) + latitude + torch.xlogy(dim - 2, angles.sin()))


@pytest.mark.parametrize(("dim", "concentration"), CASES)
def test_samples_follow_the_density(dim, concentration):
    """Kolmogorov's distance between the angles of samples and the integrated density."""
    torch.manual_seed(0)
    q, count = von_mises_fisher(dim, concentration), 20_000
    end = min(math.pi, 8 / math.sqrt(concentration / 4) + 8 * math.sqrt(dim / (concentration + dim)))
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) * (end / 20_000)
    cumulated = angle_density(q, grid).cumsum(0) * (end / 20_000)
    assert cumulated[-1].item() == pytest.approx(1, abs=1e-4)
    z = q.sample((count,))
    assert_close(z.norm(dim=-1), torch.ones(count, dtype=torch.float64))
    angles = 2 * torch.asin(((z - q.direction).norm(dim=-1) / 2).clamp(max=1))
    below = torch.searchsorted(angles.sort().values, grid) / count
    assert (below - cumulated).abs().max() < 1.95 / math.sqrt(count)  # exceeded once in 1000 seeds


@pytest.mark.parametrize(("dim", "concentration"), CASES)
def test_sample_moments_are_those_it_tells(dim, concentration):
    torch.manual_seed(1)
    q, count = von_mises_fisher(dim, concentration), 20_000
    z = q.sample((count,))
    spread = q.stddev / math.sqrt(count)
    assert ((z.mean(0) - q.mean).abs() < 4.5 * spread).all()
    assert_close(z.var(0), q.variance, rtol=0.1, atol=1e-12)
    # Isotropic around the direction: every covariance is explained by the variance along it.
    along, across = q._variances()
    assert_close(z.mul(q.direction).sum(-1).var(), along, rtol=0.1, atol=1e-12)
    expected = across * torch.eye(dim) + (along - across) * torch.outer(q.direction, q.direction)
    assert (z.T.cov() - expected).abs().max() < 0.06 * expected.max()


def test_the_gradient_of_a_sample_is_the_inverse_distribution_functions_where_that_is_known():
    """On S^2 the cosine is log(u + (1 - u) exp(-2k)) / k + 1 of a uniform u."""
    torch.manual_seed(0)
    k = torch.logspace(-3, 5, 200, dtype=torch.float64).requires_grad_()
    direction = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    z = VonMisesFisher(direction.expand(200, 3), k).rsample()
    (slope,) = torch.autograd.grad(z[:, 2].sum(), k)
    distance = (z - direction).square().sum(-1).detach() / 2  # 1 - cosine
    u = torch.expm1(-k * distance) / torch.expm1(-2 * k)  # 1 - u above
    exact = (distance - 2 * u * torch.exp(k * distance - 2 * k)) / k
    assert_close(slope, exact.detach(), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(("dim", "concentration"), [(2, 0.3), (2, 20.0), (3, 4.0), (7, 12.0), (40, 30.0)])
def test_gradients_of_samples_are_unbiased(dim, concentration):
    """Of E[a.z] and E[(b.z)^2], whose values are known, in the direction's coordinates and the concentration."""
    torch.manual_seed(0)
    raw = torch.randn(dim, dtype=torch.float64, requires_grad=True)
    k = torch.tensor(concentration, dtype=torch.float64, requires_grad=True)
    a, b = torch.randn(2, dim, dtype=torch.float64) / math.sqrt(dim)

    def distribution(count=()):
        return VonMisesFisher(normalize(raw, dim=0).expand(*count, dim), k.expand(count))

    q = distribution()
    along, across = q._variances()
    inner = b @ q.direction
    second = across * (b @ b - inner**2) + (along + q._mean_length**2) * inner**2
    exact = torch.cat([g.reshape(-1) for g in torch.autograd.grad(a @ q.mean + second, (raw, k))])
    blocks = []
    for _ in range(10):
        z = distribution((2000,)).rsample()
        estimate = (z @ a + (z @ b) ** 2).mean()
        blocks.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(estimate, (raw, k))]))
    mean, error = torch.stack(blocks).mean(0), torch.stack(blocks).std(0) / math.sqrt(10)
    assert ((mean - exact).abs() < 6 * error + 1e-9).all()


def test_a_sample_turns_with_its_direction():
    """Turning the direction moves a sample by the same rotation, and not where it already points."""
    torch.manual_seed(0)
    q = von_mises_fisher(5, 4.0)
    direction = q.direction.clone().requires_grad_()
    z = VonMisesFisher(direction, q.concentration).rsample()
    jacobian = torch.stack([torch.autograd.grad(c, direction, retain_graph=True)[0] for c in z])
    step = torch.randn(5, dtype=torch.float64)
    step = step - (step @ q.direction) * q.direction
    rotation = torch.outer(step, q.direction) - torch.outer(q.direction, step)
    assert_close(jacobian @ step, rotation @ z.detach())
    assert_close((jacobian @ step) @ z.detach(), torch.zeros((), dtype=torch.float64))  # along the sphere


@pytest.mark.parametrize(("dim", "concentration"), CASES)
def test_the_kl_to_the_uniform_density(dim, concentration):
    torch.manual_seed(0)
    q, p = von_mises_fisher(dim, concentration), SphericalUniform(dim, (), torch.zeros((), dtype=torch.float64))
    z = q.sample((20_000,))
    ratios = q.log_prob(z) - p.log_prob(z)
    error = ratios.std() / math.sqrt(len(ratios))
    assert (kl_divergence(q, p) - ratios.mean()).abs() < 4.5 * error
    assert_close(kl_divergence(q, p), log_area(dim) - q.entropy())


@given(st.integers(2, 200), st.floats(-2.5, 5))
@settings(deadline=None, max_examples=40)
def test_the_kl_rises_from_zero_with_the_slope_of_the_closed_form(dim, log10_k):
    k = torch.tensor(10.0**log10_k, dtype=torch.float64, requires_grad=True)
    q = VonMisesFisher(torch.eye(dim, dtype=torch.float64)[0], k)
    kl = kl_divergence(q, SphericalUniform(dim, (), k))
    (slope,) = torch.autograd.grad(kl, k)
    assert kl > 0
    assert_close(slope, k.detach() * q._variances()[0].detach(), rtol=1e-5, atol=1e-9)  # k times the mean's derivative


def test_the_uniform_density_is_one_over_the_area():
    torch.manual_seed(0)
    for dim, area in ((2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2)):
        p = SphericalUniform(dim, (), torch.zeros(()))
        z = p.sample((20_000,))
        assert_close(p.log_prob(z), torch.full((20_000,), -math.log(area)))
        assert_close(z.norm(dim=-1), torch.ones(20_000))
        assert z.mean(0).abs().max() < 4.5 / math.sqrt(20_000 * dim)
        assert_close(z.T.cov(), torch.eye(dim) / dim, atol=0.01, rtol=0)


def test_float32_keeps_its_digits_where_the_density_is_sharp():
    exact = von_mises_fisher(20, 1e5)
    z = exact.sample((100,))
    rounded = VonMisesFisher(exact.direction.float(), exact.concentration.float())
    assert_close(rounded.log_prob(z.float()).double(), exact.log_prob(z), atol=5e-3, rtol=0)


def test_sampling_reads_nothing_back_from_a_device():
    """On the meta device there is nothing to read; what asked for a value would fail."""
    q = VonMisesFisher(torch.randn(8, 4, device="meta"), torch.rand(8, device="meta", requires_grad=True))
    z = q.rsample((5,))
    assert z.shape == (5, 8, 4)
    assert z.requires_grad
    assert q.log_prob(z).shape == (5, 8)
