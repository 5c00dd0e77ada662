"""The importance-weighted estimate of log p(x) against the exact one of a linear-Gaussian model."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from vae_lab import load
from vae_lab.core import ImageSpec, Posterior
from vae_lab.likelihoods import LocationScale
from vae_lab.metrics.importance import importance_bound
from vae_lab.models import VAE
from vae_lab.priors import StandardNormal

SIDE, LATENTS, SCALE = 3, 2, 0.4


class ExactPosterior(Posterior):
    """q(z|x) of x = W z + b + noise, widened by `factor`."""

    num_params = 2 * LATENTS

    def __init__(self, w, b, factor):
        super().__init__()
        self.num_params, self.num_features = SIDE * SIDE, LATENTS
        self.w, self.b, self.factor = w, b, factor

    def forward(self, x):
        precision = torch.eye(LATENTS, dtype=x.dtype) + self.w.T @ self.w / SCALE**2
        covariance = torch.linalg.inv(precision)
        mean = (x.flatten(1) - self.b) @ self.w @ covariance / SCALE**2
        return MultivariateNormal(mean, covariance_matrix=self.factor * covariance)


def linear_model(factor):
    """A VAE whose evidence is known, its exact log p(x), and images."""
    torch.manual_seed(0)
    dims = SIDE * SIDE
    w, b = 0.3 * torch.randn(dims, LATENTS), 0.1 * torch.randn(dims)
    decoder = nn.Sequential(nn.Linear(LATENTS, dims), nn.Unflatten(1, (1, SIDE, SIDE)))
    decoder[0].weight.data, decoder[0].bias.data = w, b
    likelihood = LocationScale(ImageSpec(1, SIDE, SIDE), Identity, SCALE)
    model = VAE(
        ImageSpec(1, SIDE, SIDE), LATENTS,
        encoder=lambda *_: nn.Identity(), decoder=lambda *_: decoder,
        posterior=lambda _: ExactPosterior(w, b, factor), prior=StandardNormal, likelihood=lambda _: likelihood,
    )  # fmt: skip
    x = torch.rand(5, 1, SIDE, SIDE)
    evidence = MultivariateNormal(b, covariance_matrix=w @ w.T + SCALE**2 * torch.eye(dims)).log_prob(x.flatten(1))
    return model, x, evidence


def Identity(mean, scale, validate_args):  # noqa: N802
    """A Normal around the decoder's output itself: the family hands over its sigmoid."""
    return torch.distributions.Normal(mean.logit(), scale, validate_args=validate_args)


def test_with_the_exact_posterior_one_sample_is_enough():
    model, x, evidence = linear_model(1.0)
    assert_close(importance_bound(model, x, 1), evidence, rtol=1e-3, atol=1e-3)


def test_the_bound_rises_with_the_number_of_samples_to_the_evidence():
    model, x, evidence = linear_model(3.0)
    means = []
    for num_samples in (1, 8, 64):
        repeats = torch.stack([importance_bound(model, x, num_samples) for _ in range(200)])
        means.append(repeats.mean(0))
    assert (means[0] < means[1]).all() and (means[1] < means[2] + 5e-3).all()
    assert_close(importance_bound(model, x, 20_000), evidence, rtol=0, atol=3e-2)


def test_many_images_are_taken_a_few_at_a_time_and_their_samples_in_parts(monkeypatch):
    monkeypatch.setattr("vae_lab.metrics.importance.MAX_VALUES_PER_CHUNK", 2 * SIDE * SIDE)
    model, x, evidence = linear_model(1.0)
    encoded = []
    model.encoder.register_forward_hook(lambda *args: encoded.append(len(args[2])))
    assert_close(importance_bound(model, x, 7), evidence, rtol=1e-3, atol=1e-3)
    assert encoded == [2, 2, 1]


@pytest.mark.parametrize("num_samples", [0, 1.5])
def test_less_than_a_sample_is_refused(num_samples):
    model, x, _ = linear_model(1.0)
    with pytest.raises(ValueError, match=f"at least 1 sample; found {num_samples}"):
        importance_bound(model, x, num_samples)


def test_a_loaded_run_tells_the_likelihood_of_images(fast_run):
    lab = load(fast_run.run)
    images = (torch.rand(4, 1, 28, 28) > 0.5).float()
    torch.manual_seed(0)
    few, many = lab.log_likelihood(images, 1), lab.log_likelihood(images, 200)
    assert few.shape == many.shape == (4,) and many.mean() > few.mean()
    assert many.max() < 0 and math.isfinite(float(many.min()))


@pytest.mark.parametrize(
    ("images", "found"),
    [([[0.5]], "found a list"), (torch.zeros(0, 1, 28, 28), r"found torch.float32 \(0, 1, 28, 28\)"),
     (torch.full((1, 1, 28, 28), 2.0), r"found values in \[2, 2\]"),
     (torch.zeros(1, 1, 28, 28, dtype=torch.uint8), r"images.float\(\) / 255")],
)  # fmt: skip
def test_what_is_no_batch_of_images_is_refused_with_what_was_found(fast_run, images, found):
    with pytest.raises(ValueError, match=rf"(?s)expected a float32 torch.Tensor \(B, 1, 28, 28\) in \[0, 1\].*{found}"):
        load(fast_run.run).log_likelihood(images)
