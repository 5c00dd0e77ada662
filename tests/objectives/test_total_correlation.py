"""The minibatch estimates of total correlation against mixtures written with torch.distributions."""

import itertools
import math

import pytest
import torch
from helpers.latents import IMAGE, gaussian, regularizer_inputs, spec
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal
from torch.testing import assert_close

from vae_lab.core import LatentSpec
from vae_lab.objectives.regularizers import TotalCorrelation
from vae_lab.objectives.regularizers.latents import log_importance_weights, pairwise_log_densities, total_correlation
from vae_lab.posteriors import DiagonalGaussian

ESTIMATES = ("minibatch_stratified", "minibatch_weighted")


def data_set(correlation, num_images=512, noise=0.6):
    """q(z|x_i) of a data set whose aggregate is nearly N(0, [[1, r], [r, 1]]): even means under a Gaussian."""
    even = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(num_images, dtype=torch.float64)
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64) - noise**2 * torch.eye(2)
    means = torch.special.ndtri(even.clamp(1e-6, 1 - 1e-6)) @ torch.linalg.cholesky(covariance).T
    return gaussian(means, noise)


def exact(z, posterior):
    """log q(z) - sum_d log q(z_d) of the mixture of all q(z|x_i), at z (S, B, D)."""
    normal, num_images = posterior.base_dist, len(posterior.mean)
    weights = torch.ones(num_images, dtype=z.dtype)
    joint = MixtureSameFamily(Categorical(weights), posterior).log_prob(z)
    rows = Categorical(weights.expand(z.shape[-1], -1))
    return joint - MixtureSameFamily(rows, Normal(normal.loc.T, normal.scale.T)).log_prob(z).sum(-1)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_of_a_batch_of_all_images_the_estimate_is_exact(estimate):
    torch.manual_seed(0)
    posterior = gaussian(torch.randn(20, 3, dtype=torch.float64), torch.rand(20, 3, dtype=torch.float64) + 0.2)
    z = posterior.sample((4,))
    assert_close(total_correlation(z, posterior, 20, estimate), exact(z, posterior).mean(0))


def of_gaussian(z, correlation):
    """log N(z; 0, [[1, r], [r, 1]]) - sum_d log N(z_d; 0, 1), whose mean is the total correlation -ln(1 - r^2) / 2."""
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=z.dtype)
    joint = MultivariateNormal(torch.zeros(2, dtype=z.dtype), covariance).log_prob(z)
    return joint - Normal(0.0, 1.0).log_prob(z).sum(-1)


def estimated(z, posterior, correlation, estimate, num_images=512):
    """The mean estimate, less most of its noise: what the exact log ratio at these z differs from its mean by."""
    truth = -0.5 * math.log(1 - correlation**2)
    return (total_correlation(z, posterior, num_images, estimate) - of_gaussian(z, correlation).mean(0)).mean() + truth


@pytest.mark.parametrize("correlation", [0.0, 0.4, -0.6])
@pytest.mark.parametrize("estimate", ESTIMATES)
def test_a_gaussian_of_known_total_correlation(correlation, estimate):
    torch.manual_seed(0)
    posterior = data_set(correlation)
    value = estimated(posterior.sample((4,)), posterior, correlation, estimate).item()
    assert value == pytest.approx(-0.5 * math.log(1 - correlation**2), abs=0.01)


def test_the_stratified_estimate_of_a_density_is_unbiased():
    """The mean over every batch of three of five images that holds the sample's own is the mixture's density."""
    torch.manual_seed(0)
    posterior = gaussian(torch.randn(5, 2, dtype=torch.float64), 0.5)
    z = posterior.sample((3,))
    mixture = MixtureSameFamily(Categorical(torch.ones(5, dtype=z.dtype)), posterior).log_prob(z).exp()
    estimates = []
    for others in itertools.combinations(range(1, 5), 2):
        batch = [0, *others]
        log_q = pairwise_log_densities(z[:, batch], gaussian(posterior.mean[batch], 0.5)).sum(-1)
        estimates.append(
            (log_q + log_importance_weights(z[:, batch], 5, "minibatch_stratified")).logsumexp(-1).exp()[:, 0]
        )
    assert_close(torch.stack(estimates).mean(0), mixture[:, 0])


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_both_estimates_are_plain_loops(estimate):
    torch.manual_seed(0)
    means, num_images, size = torch.randn(3, 2, dtype=torch.float64), 10, 3
    posterior = gaussian(means, 0.7)
    z = posterior.sample((2,))
    own, others = (1 / 10, 9 / 20) if estimate == "minibatch_stratified" else (1 / 10, 1 / 10)
    expected = torch.zeros(size, dtype=torch.float64)
    for s, i in itertools.product(range(2), range(size)):
        density = [[math.exp(Normal(means[j, d], 0.7).log_prob(z[s, i, d])) for d in range(2)] for j in range(size)]
        share = [own if i == j else others for j in range(size)]
        joint = sum(w * p[0] * p[1] for w, p in zip(share, density, strict=True))
        factors = [sum(w * p[d] for w, p in zip(share, density, strict=True)) for d in range(2)]
        expected[i] += (math.log(joint) - math.log(factors[0]) - math.log(factors[1])) / 2
    assert_close(total_correlation(z, posterior, num_images, estimate), expected)


def test_the_weighted_density_never_exceeds_the_mixtures():
    torch.manual_seed(0)
    posterior = gaussian(torch.randn(30, 2, dtype=torch.float64), 0.5)
    z = posterior.sample((5,))
    mixture = MixtureSameFamily(Categorical(torch.ones(30, dtype=z.dtype)), posterior).log_prob(z)
    part = gaussian(posterior.mean[:12], 0.5)
    log_q = pairwise_log_densities(z[:, :12], part).sum(-1) + log_importance_weights(
        z[:, :12], 30, "minibatch_weighted"
    )
    assert (log_q.logsumexp(-1) < mixture[:, :12]).all()


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(0, 50), st.sampled_from(ESTIMATES))
@settings(deadline=None, max_examples=40)
def test_neither_units_nor_the_order_of_images_nor_a_map_matter(seed, size, more, estimate):
    generator = torch.Generator().manual_seed(seed)
    means, scales, units, noise = (torch.randn(size, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    scales, units, shift = scales.exp(), units[:1].exp(), 10 * units[:1]
    z = (means + scales * noise).unsqueeze(0)
    plain = total_correlation(z, gaussian(means, scales), size + more, estimate)
    changed = total_correlation(
        units * z + shift, gaussian(units * means + shift, units * scales), size + more, estimate
    )
    assert_close(changed, plain, rtol=1e-6, atol=1e-6)
    flipped = total_correlation(z.flip(1), gaussian(means.flip(0), scales.flip(0)), size + more, estimate)
    assert_close(flipped.flip(0), plain)
    maps = Independent(Normal(means.view(-1, 1, 2, 2), scales.view(-1, 1, 2, 2)), 3)
    assert_close(total_correlation(z.view(1, -1, 1, 2, 2), maps, size + more, estimate), plain)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_one_dimension_has_none_and_an_image_alone_no_gradient(estimate):
    means = torch.randn(6, 1, dtype=torch.float64)
    z = gaussian(means, 1.0).sample((2,))
    assert_close(total_correlation(z, gaussian(means, 1.0), 50, estimate), torch.zeros(6, dtype=torch.float64))
    alone = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)
    posterior = gaussian(alone, 0.5)
    value = total_correlation(posterior.rsample((2,)), posterior, 50, estimate)
    assert value.item() == pytest.approx(0.0 if estimate == "minibatch_stratified" else 2 * math.log(50))
    value.sum().backward()
    assert_close(alone.grad, torch.zeros_like(alone))


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_its_gradient_reaches_means_and_scales_of_every_image_and_is_finite_far_out(estimate):
    torch.manual_seed(0)
    params = torch.cat((100 * torch.randn(8, 3), torch.linspace(-30, 3, 24).view(8, 3)), 1).requires_grad_()
    regularizer = TotalCorrelation(spec(), 5.0, estimate)
    value = regularizer(regularizer_inputs(DiagonalGaussian(3)(params)))
    assert value.shape == (8,) and value.isfinite().all()
    value.mean().backward()
    assert params.grad.isfinite().all()
    near = (0.3 * torch.randn(8, 6)).requires_grad_()
    regularizer(regularizer_inputs(DiagonalGaussian(3)(near))).mean().backward()
    assert (near.grad != 0).all()


@pytest.mark.parametrize(
    ("latents", "options", "message"),
    [
        ([LatentSpec("vector", (3,), IMAGE)] * 2, {}, "this model has 2 layers"),
        ([LatentSpec("codes", (3,), IMAGE)], {}, "found the kind codes.\nChoose another model/posterior"),
        ([], {"weight": -1.0}, "total_correlation.weight is a number of at least 0; found -1"),
        ([], {"weight": math.nan}, "total_correlation.weight"),
    ],
)
def test_settings_that_make_no_sense_are_refused(latents, options, message):
    with pytest.raises(ValueError, match=message):
        TotalCorrelation(spec(*latents), **{"weight": 1.0, **options})


def test_a_posterior_of_dependent_dimensions_is_refused():
    posterior = MultivariateNormal(torch.zeros(4, 3), torch.eye(3).expand(4, 3, 3))
    with pytest.raises(ValueError, match=r"choose model/posterior=diagonal_gaussian \(found MultivariateNormal\)"):
        TotalCorrelation(spec(), 1.0)(regularizer_inputs(posterior))
