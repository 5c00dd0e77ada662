"""Probabilistic PCA against the exact density and posterior of a linear-Gaussian model; errors of known images."""

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from vae_lab.metrics import baseline
from vae_lab.metrics.baseline import channel_moments, fit_ppca, moments, reconstruction_metrics


def linear_gaussian(count=300, dims=12, latents=3, scale=0.2, dtype=torch.float64):
    torch.manual_seed(0)
    w = torch.randn(dims, latents, dtype=dtype)
    return torch.randn(count, latents, dtype=dtype) @ w.T + scale * torch.randn(count, dims, dtype=dtype) + 0.5


def fit(x, latents):
    return fit_ppca(lambda: x.split(64), latents)


@pytest.fixture
def routes(monkeypatch):
    """Fits of the same images by covariance, by Gram matrix and by random projections."""

    def fits(x, latents):
        found = [fit(x, latents)]
        monkeypatch.setattr(baseline, "EXACT_SIZE", x.shape[1] - 1)
        if len(x) < x.shape[1]:
            found.append(fit(x, latents))
            monkeypatch.setattr(baseline, "EXACT_SIZE", len(x) - 1)
        return [*found, fit(x, latents)]

    return fits


def test_the_log_likelihood_is_that_of_the_gaussian_with_covariance_w_wt_plus_noise():
    x = linear_gaussian()
    pca = fit(x, 3)
    w = pca.components * (pca.variances - pca.noise).sqrt()
    exact = MultivariateNormal(x.mean(0), w @ w.T + pca.noise * torch.eye(12, dtype=x.dtype)).log_prob(x)
    assert_close(pca.log_prob(x), exact, rtol=1e-9, atol=1e-9)
    assert float(pca.noise.sqrt()) == pytest.approx(0.2, rel=0.05)


def test_the_reconstruction_is_at_the_exact_posterior_mean():
    x = linear_gaussian()
    pca = fit(x, 3)
    w = pca.components * (pca.variances - pca.noise).sqrt()
    z = torch.linalg.solve(w.T @ w + pca.noise * torch.eye(3, dtype=x.dtype), w.T @ (x - x.mean(0)).T).T
    assert_close(pca.reconstruct(x), z @ w.T + x.mean(0))


def test_no_other_weights_or_noise_are_more_likely():
    x = linear_gaussian()
    pca = fit(x, 3)
    best, turned = pca.log_prob(x).mean(), pca.components + 0.05 * torch.randn(12, 3, dtype=x.dtype)
    for change in ({"noise": pca.noise * 1.1}, {"noise": pca.noise * 0.9}, {"variances": pca.variances * 1.1},
                   {"components": torch.linalg.qr(turned).Q}):  # fmt: skip
        assert pca._replace(**change).log_prob(x).mean() < best


@pytest.mark.parametrize(("shape", "latents"), [((300, 40), 3), ((30, 60), 3), ((30, 60), 28)])
def test_covariance_gram_matrix_and_random_projections_agree(routes, shape, latents):
    x = linear_gaussian(*shape)
    first, *others = routes(x, latents)
    for other in others:
        assert_close(other.log_prob(x), first.log_prob(x), rtol=1e-6, atol=1e-6)
        assert_close(other.reconstruct(x), first.reconstruct(x), rtol=1e-5, atol=1e-5)


def test_random_projections_find_slowly_decaying_variances(routes):
    torch.manual_seed(0)
    x = torch.randn(600, 200) * torch.arange(1, 201) ** -0.5
    exact, approximate = routes(x, 20)
    assert float((approximate.log_prob(x) - exact.log_prob(x)).mean()) == pytest.approx(0, abs=0.2)  # of 134 nats
    assert_close(approximate.variances, exact.variances, rtol=0.03, atol=0)


def test_more_latents_leave_a_smaller_error():
    """noise for each dropped direction, noise^2 / variance for each kept one, which the posterior mean shrinks."""
    torch.manual_seed(0)
    x = torch.randn(200, 12) * 0.8 ** torch.arange(12)
    fits = [fit(x, latents) for latents in range(1, 12)]
    errors = [(pca.reconstruct(x) - x).square().sum(1).mean() for pca in fits]
    exact = [pca.noise * (12 - len(pca.variances)) + (pca.noise**2 / pca.variances).sum() for pca in fits]
    assert_close(errors, exact)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("count", "latents"), [(300, 12), (10, 9), (300, 0)])
def test_too_few_images_or_too_many_latents_are_refused(count, latents):
    with pytest.raises(ValueError, match=f"{latents} latents for {count} images of 12 values"):
        fit(linear_gaussian(count), latents)


def test_constant_pixels_and_equal_images_have_a_density():
    x = torch.rand(2, 30).repeat(10, 1)
    assert fit(x, 4).log_prob(x).isfinite().all()


def metrics(x, reconstruction):
    mean = x.mean(0)
    return reconstruction_metrics(channel_moments(x - reconstruction), channel_moments(x - mean), 25, len(x))


def test_chroma_is_1_for_the_mean_image_and_0_for_a_perfect_reconstruction():
    torch.manual_seed(0)
    x = torch.rand(8, 3, 5, 5)
    mean, perfect, grey = metrics(x, x.mean(0)), metrics(x, x), metrics(x, x.mean(1, keepdim=True))
    assert mean["chroma"] == pytest.approx(1) and mean["mse"] == pytest.approx(float(x.var(0, correction=0).mean()))
    assert perfect["chroma"] == 0 and perfect["mse"] == 0
    assert metrics(x, x + 0.1)["chroma"] == pytest.approx(0, abs=1e-6)  # brighter, of the same colour
    assert grey["chroma"] > 1


def test_the_nll_of_the_errors_falls_by_the_log_of_their_scale():
    torch.manual_seed(0)
    x, errors = torch.rand(8, 3, 5, 5), torch.randn(8, 3, 5, 5)
    large, small = metrics(x, x + errors), metrics(x, x + errors / 10)
    fall = large["reconstruction_nll"] - small["reconstruction_nll"]
    assert fall == pytest.approx(75 * 2.302585, rel=1e-3)


def test_grey_images_have_no_chroma():
    x = torch.rand(8, 1, 5, 5)
    assert set(metrics(x, 0 * x)) == set(metrics(x.expand(-1, 3, -1, -1), 0.5 + 0 * x)) == {"mse"}


def test_moments_are_those_of_all_images():
    x = linear_gaussian()
    found = moments(lambda: x.split(7))
    assert found.num_images == 300
    assert_close(found.mean, x.mean(0))
    assert_close(found.variance, x.var(0, correction=0).sum())
