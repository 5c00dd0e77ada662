"""A linear-Gaussian VAE, whose log p(x) is known, and a stand-in for the data module."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.distributions import MultivariateNormal

from vae_lab.core import ImageSpec, Posterior
from vae_lab.likelihoods import LocationScale
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
        return MultivariateNormal(mean, covariance_matrix=self.factor * covariance, validate_args=False)


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


class Images:
    """Images of one set for all splits, as a data module gives them."""

    class_names = ()

    def __init__(self, x, labels=None, batch_size=64):
        self.x, self.labels, self.batch_size = x, labels, batch_size
        self.preprocess = SimpleNamespace(binarize="none")

    def size(self, split):
        return len(self.x)

    def first_images(self, split, count=None):
        for rows in torch.arange(len(self.x))[:count].split(self.batch_size):
            yield self.x[rows], None if self.labels is None else self.labels[rows]
