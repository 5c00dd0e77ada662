"""Posterior families against torch.distributions, closed forms and autograd; on vectors and on maps."""

import copy
import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from vae_lab.core import ImageSpec, Latent, LatentSpec
from vae_lab.distributions.gaussians import bounded_scale, logvar_for_scale
from vae_lab.models.base import point_estimate
from vae_lab.objectives.bounds import closed_form_kl
from vae_lab.posteriors import Deterministic, DiagonalGaussian, FullCovarianceGaussian, VonMisesFisher
from vae_lab.priors import Flat, StandardNormal, UniformSphere

FAMILIES = [DiagonalGaussian, FullCovarianceGaussian, VonMisesFisher, Deterministic]
IMAGE = ImageSpec(1, 4, 4)


def full_params(batch, dim, spatial_shape=(), scale=1.0):
    family = FullCovarianceGaussian(dim)
    return family, scale * torch.randn(batch, family.num_params, *spatial_shape)


@pytest.mark.parametrize("spatial_shape", [(), (2, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_makes_samples_and_densities_of_its_shapes(family, spatial_shape):
    torch.manual_seed(0)
    family = copy.deepcopy(family(4))
    params = torch.randn(5, family.num_params, *spatial_shape, requires_grad=True)
    q = family(params)
    z = q.rsample((7,))
    event = (family.num_features, *spatial_shape)
    assert (q.batch_shape, q.event_shape) == ((5,), event)
    assert z.shape == (7, 5, *event)
    assert q.log_prob(z).shape == (7, 5)
    assert q.mean.shape == q.stddev.shape == point_estimate(q).shape == (5, *event)
    (gradient,) = torch.autograd.grad(q.log_prob(z).sum() + z.square().mul(torch.randn_like(z)).sum(), params)
    assert gradient.isfinite().all()
    assert (gradient != 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_is_as_many_vectors_as_it_has_places(family):
    torch.manual_seed(0)
    family = family(3)
    params = torch.randn(5, family.num_params, 2, 2)
    q, places = family(params), [family(params[:, :, i, j]) for i in range(2) for j in range(2)]
    z = q.sample((4,))
    assert_close(q.log_prob(z), sum(p.log_prob(z[..., i // 2, i % 2]) for i, p in enumerate(places)))
    for name in ("mean", "mode", "variance"):
        assert_close(getattr(q, name).flatten(2), torch.stack([getattr(p, name) for p in places], -1))
    if family.is_density:
        assert_close(q.entropy(), sum(p.entropy() for p in places))
        make = UniformSphere if family.kind == "sphere" else StandardNormal
        prior, vector = (make(LatentSpec(family.kind, shape, IMAGE))() for shape in ((3, 2, 2), (3,)))
        expected = sum(kl_divergence(p, vector) for p in places)
        assert_close(closed_form_kl(Latent(z, q, prior)), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [0.0, 1e6, -1e6])
def test_extreme_parameters_leave_everything_finite(family, value):
    family = family(3)
    params = torch.full((2, family.num_params), value)
    params[:, 6:] = math.copysign(1.0, value)  # below a Cholesky factor's diagonal, where nothing is bounded
    q = family(params.requires_grad_())
    z = q.rsample((1,))
    (gradient,) = torch.autograd.grad(q.log_prob(z).sum() + z.sum(), params)
    assert z.isfinite().all() and q.log_prob(z).isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_densities_are_of_float32_whatever_the_network_is_of(family):
    family = family(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = family(torch.randn(2, family.num_params, dtype=torch.bfloat16))
        z = q.rsample((3,))
        assert z.dtype == q.log_prob(z).dtype == torch.float32
        assert (z != z.bfloat16()).any() or family.num_params == 3  # a point mass has the network's digits


def test_a_full_covariance_is_cholesky_times_its_transpose():
    torch.manual_seed(0)
    family, params = full_params(6, 4)
    mean, logvar, below = params.split((4, 4, 6), 1)
    factor = torch.diag_embed(torch.exp(10 * torch.tanh(logvar / 20)))
    for index, (i, j) in enumerate([(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]):
        factor[:, i, j] = below[:, index]
    reference = MultivariateNormal(mean, covariance_matrix=factor @ factor.mT)
    q, z = family(params), torch.randn(3, 6, 4)
    assert_close(q.log_prob(z), reference.log_prob(z), rtol=1e-3, atol=1e-3)
    assert_close(q.variance, reference.variance, rtol=1e-4, atol=1e-5)


def test_gaussian_densities_integrate_to_one_in_one_and_two_dimensions():
    torch.manual_seed(0)
    grid = torch.linspace(-12, 12, 601)
    for family in (DiagonalGaussian, FullCovarianceGaussian):
        line = family(1)(torch.tensor([[0.3, -0.5]]))
        assert line.log_prob(grid.view(-1, 1, 1)).exp().sum().item() * 0.04 == pytest.approx(1, abs=1e-4)
        plane, points = family(2), torch.cartesian_prod(grid, grid)
        params = torch.tensor([[0.3, -0.5, 0.4, -0.6, 0.8]])[:, : plane.num_params]
        assert plane(params).log_prob(points.unsqueeze(1)).exp().sum().item() * 0.04**2 == pytest.approx(1, abs=1e-4)


def test_kls_between_full_and_diagonal_gaussians_are_torchs_between_full_ones():
    torch.manual_seed(0)
    family, params = full_params(6, 4)
    full = family(params)
    mean, scale = torch.randn(4), torch.rand(4) + 0.5
    diagonal = Independent(Normal(mean, scale), 1)
    as_full = MultivariateNormal(mean, scale_tril=torch.diag(scale))
    assert_close(kl_divergence(full, diagonal), kl_divergence(full, as_full))
    assert_close(kl_divergence(diagonal, full), kl_divergence(as_full, full))
    z = full.sample((100_000,))
    ratios = full.log_prob(z) - diagonal.log_prob(z)
    assert ((ratios.mean(0) - kl_divergence(full, diagonal)).abs() < 4.5 * ratios.std(0) / math.sqrt(len(z))).all()


def test_a_kl_to_what_is_no_diagonal_gaussian_is_not_made_up():
    family, params = full_params(2, 3)
    laplace = Independent(torch.distributions.Laplace(torch.zeros(3), torch.ones(3)), 1)
    with pytest.raises(NotImplementedError):
        kl_divergence(family(params), laplace)
    with pytest.raises(NotImplementedError):
        kl_divergence(laplace, family(params))
    family, params = full_params(2, 3, (2, 2))
    with pytest.raises(NotImplementedError):
        kl_divergence(family(params), laplace)


def test_a_log_variance_is_found_again_from_its_scale():
    scale = torch.tensor([1e-4, 0.01, 1.0, 30.0, 1e4])
    assert_close(bounded_scale(logvar_for_scale(scale)), scale, rtol=1e-4, atol=0)
    assert bounded_scale(logvar_for_scale(torch.tensor([0.0, 1e30]))).isfinite().all()


def test_a_point_mass_is_its_parameters_and_its_rate_nothing_under_flat_and_minus_log_p_under_a_density():
    params = torch.randn(5, 3, requires_grad=True)
    q, latent = Deterministic(3)(params), LatentSpec("vector", (3,), IMAGE)
    z = q.rsample((4,))
    assert torch.equal(z, params.expand(4, 5, 3))
    assert torch.equal(q.stddev, torch.zeros(5, 3))
    assert torch.equal(closed_form_kl(Latent(z, q, Flat(latent)())), torch.zeros(4, 5))
    prior = StandardNormal(latent)()
    assert_close(closed_form_kl(Latent(z, q, prior)), -prior.log_prob(z))
    z.sum().backward()
    assert torch.equal(params.grad, torch.full((5, 3), 4.0))


def test_von_mises_fisher_parameters_are_a_direction_and_a_concentration():
    torch.manual_seed(0)
    params = torch.randn(6, 5)
    q = VonMisesFisher(4)(params)
    assert_close(q.mode, torch.nn.functional.normalize(params[:, :4], dim=1), atol=5e-3, rtol=0)
    assert_close(q.mode.norm(dim=1), torch.ones(6))
    assert_close(q.concentration, 4 * torch.nn.functional.softplus(params[:, 4]) + 1e-3)
    prior = UniformSphere(LatentSpec("sphere", (4,), IMAGE))()
    z = q.sample((20_000,))
    estimate = (q.log_prob(z) - prior.log_prob(z)).mean(0)
    assert_close(closed_form_kl(Latent(z, q, prior)), estimate, atol=0.02, rtol=0)


def test_a_sphere_of_two_points_is_refused():
    with pytest.raises(ValueError, match=r"model.latent_dim=1.*Choose at least 2"):
        VonMisesFisher(1)
