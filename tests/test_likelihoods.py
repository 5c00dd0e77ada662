"""The Gaussian of colour: exact against torch's full covariance, and the optimum of its batch."""

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from vae_lab.core import ImageSpec
from vae_lab.likelihoods import MIN_VARIANCE, ColorGaussian

N, C, H, W = 5, 3, 6, 4
P = H * W
COVARIANCE = torch.tensor([[0.05, 0.04, 0.01], [0.04, 0.06, 0.02], [0.01, 0.02, 0.03]])


@pytest.fixture
def family():
    torch.manual_seed(0)
    return ColorGaussian(ImageSpec(C, H, W))


def errors(params, x):
    """e of every pixel of the batch, float64, (pixels, C)."""
    return (x.double() - params.double().sigmoid()).movedim(-3, -1).reshape(-1, C)


def covariance(params, x):
    """What a batch in training is scored with: the mean of e e^T, shrunk towards its mean variance."""
    e = errors(params, x)
    optimum = e.T @ e / len(e) + MIN_VARIANCE * torch.eye(C)
    return optimum + 0.01 * optimum.trace() / C * torch.eye(C)


def log_px(params, x, covariance):
    """Of the whole batch, by torch's full covariance in float64."""
    return MultivariateNormal(torch.zeros(C, dtype=torch.float64), covariance).log_prob(errors(params, x)).sum()


def test_in_evaluation_it_is_torchs_normal_of_each_pixel_with_the_covariance_it_was_fitted_with(family):
    params, x = torch.randn(2, N, C, H, W), torch.rand(N, C, H, W)
    family.fit(family.error_statistics(params[0].sigmoid() - x))
    e = errors(params[0], x).float()
    assert_close(family.covariance, e.T @ e / len(e) + MIN_VARIANCE * torch.eye(C))
    density = family.eval()(params)
    pixels = MultivariateNormal(params.sigmoid().movedim(-3, -1), family.covariance)
    assert_close(density.log_prob(x), pixels.log_prob(x.movedim(-3, -1)).sum((-2, -1)), rtol=1e-5, atol=1e-3)
    assert (density.batch_shape, density.event_shape) == ((2, N), (C, H, W))
    assert torch.equal(density.mean, params.sigmoid())


def test_a_batch_is_scored_with_its_own_shrunk_covariance_held_in_the_gradient(family):
    """The gradient by central differences."""
    params, x = torch.randn(2, N, C, H, W), torch.rand(N, C, H, W)
    total = family(params.requires_grad_()).log_prob(x).sum()
    x2 = x.expand(2, -1, -1, -1, -1)
    with torch.no_grad():
        own = covariance(params, x2)
        assert_close(total.double(), log_px(params, x2, own), rtol=1e-5, atol=1e-2)
    (gradient,) = torch.autograd.grad(total, params)
    for _ in range(3):
        step = 1e-5 * torch.randn(params.shape, dtype=torch.float64)
        with torch.no_grad():
            change = log_px(params + step, x2, own) - log_px(params - step, x2, own)
        assert_close((gradient * step).sum(), change / 2, rtol=1e-4, atol=1e-7)


def test_the_fitted_covariance_is_the_optimum(family):
    """No other covariance gives the images it was fitted to a higher density, beyond the floor of a variance."""
    params, x = torch.randn(1, N, C, H, W), torch.rand(N, C, H, W)
    family.fit(family.error_statistics(params[0].sigmoid() - x))
    best = family.eval()(params).log_prob(x).sum()
    noise = torch.randn(20, C, C)
    others = family.covariance + 1e-3 * (noise + noise.mT)
    assert all(log_px(params, x[None], other.double()) < best for other in others)


@pytest.mark.parametrize("training", [True, False])
def test_a_rotation_of_the_colours_changes_nothing(training, family):
    """Of x, of the mean and, in evaluation, of the training images."""
    images = torch.rand(2, N, C, H, W) / 2 - 0.25  # around grey: rotated, they are still within [0, 1]
    rotation = torch.linalg.qr(torch.randn(C, C)).Q
    log_px = []
    for turned in (images, torch.einsum("ij,...jhw->...ihw", rotation, images)):
        x, mean = 0.5 + turned
        family.fit(family.error_statistics(mean - x))
        log_px.append(family.train(training)(mean.logit()).log_prob(x))
    assert_close(*log_px, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_autocast_rounds_nothing(training, family):
    params, x = torch.randn(1, N, C, H, W).bfloat16(), torch.rand(N, C, H, W)
    family.train(training).fit(COVARIANCE.expand(N, C, C))
    expected = family(params).log_prob(x), family.error_statistics(x - 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = family(params).log_prob(x), family.error_statistics(x - 0.5)
    assert all(torch.equal(a, b) and b.dtype == torch.float32 for a, b in zip(expected, found, strict=True))


def test_samples_have_the_fitted_covariance(family):
    family.eval().fit(COVARIANCE.expand(N, C, C))
    density = family(torch.randn(2, C, H, W))
    noise = (density.sample((4000,)) - density.mean).movedim(-3, -1).reshape(-1, C)
    assert_close(noise.T @ noise / len(noise), family.covariance, rtol=0, atol=1e-3)


@pytest.mark.parametrize("error", [0.0, 0.3, 1.0])
def test_flat_and_black_and_white_batches_are_finite(error, family):
    """Equal errors of the channels, whose covariance is singular."""
    mean = torch.full((1, N, C, H, W), 1e-9 if error == 1 else 0.5)
    x = (mean[0] + error * torch.rand(N, 1, H, W).round()).requires_grad_()
    log_px = family(mean.logit()).log_prob(x)
    log_px.sum().backward()
    assert log_px.isfinite().all() and x.grad.isfinite().all()
    family.fit(family.error_statistics((x - mean[0]).detach()))
    assert family.eval()(mean.logit()).log_prob(x).isfinite().all()
