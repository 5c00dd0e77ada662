"""Posterior families: an encoder's output to q(z|x), a torch Distribution over one latent.

A family says how many parameters (`num_params`) it asks of an encoder and how many features (`num_features`) of z a
decoder gets. An encoder that leaves a map gives parameters (B, num_params, h, w), and the latent is a map too.
Densities are computed in float32 whatever the network's precision.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn.functional import normalize, softplus

from vae_lab import sphere
from vae_lab.densities import NO_SHAPE, Shape
from vae_lab.gaussians import FullNormal, bounded_scale, num_below, scale_tril
from vae_lab.latents import Kind
from vae_lab.places import Placewise

SMALLEST_CONCENTRATION, LARGEST_CONCENTRATION = 1e-3, 1e5  # nearly uniform; standard deviations of 0.003


class Posterior(Protocol):
    """q(z|x) from an encoder's output (B, num_params, *map)."""

    kind: Kind
    num_params: int
    num_features: int  # mostly latent_dim

    def __call__(self, params: Tensor) -> Distribution:
        """Batch (B,), event (num_features, *map)."""
        ...


class DiagonalGaussian(nn.Module):
    """N(mean, diag exp(logvar)), both from the encoder, logvar bounded. Kingma & Welling 2014, arXiv:1312.6114."""

    kind: Kind = "vector"

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.num_params, self.num_features = 2 * latent_dim, latent_dim

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, 2 D, *map), means then log variances."""
        return diagonal_gaussian(*params.float().chunk(2, 1))


def diagonal_gaussian(mean: Tensor, logvar: Tensor) -> Distribution:
    """N(mean, diag exp(logvar)) with the log variance bounded; (B, D, *map) each, all but B the event."""
    normal = Normal(mean, bounded_scale(logvar), validate_args=False)
    return Independent(normal, mean.dim() - 1, validate_args=False)


class FullCovarianceGaussian(nn.Module):
    """N(mean, L L^T), L lower triangular, its diagonal bounded. Kingma & Welling 2019, arXiv:1906.02691, 2.5.1.

    Over a map, the features of each place have a covariance of their own; one of all places would take an encoder
    half of (D h w)^2 outputs.
    """

    kind: Kind = "vector"

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.num_params, self.num_features = 2 * latent_dim + num_below(latent_dim), latent_dim
        self._parts = (latent_dim, latent_dim, num_below(latent_dim))

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, 2 D + D (D - 1) / 2, *map): means, log variances of L's diagonal, L below it row by row."""
        mean, logvar, below = params.float().movedim(1, -1).split(self._parts, -1)
        return _over_places(FullNormal(mean, scale_tril=scale_tril(logvar, below), validate_args=False))


class VonMisesFisher(nn.Module):
    """von Mises-Fisher on the unit sphere in R^D, D >= 2: the hyperspherical VAE. arXiv:1804.00891.

    The concentration is softplus of an output, times D: samples then keep to their direction, at the start about half
    of their length, whatever D is (with a concentration near 1, many dimensions would hide it). Over a map, a sphere at
    each place. ValueError: latent_dim < 2.
    """

    kind: Kind = "sphere"

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 2:
            raise ValueError(
                f"model.latent_dim={latent_dim}: the unit sphere in R^1 is two points. Choose at least 2 for "
                "model/posterior=von_mises_fisher"
            )
        self.num_params, self.num_features = latent_dim + 1, latent_dim

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, D + 1, *map), directions of any length, then what softplus makes a concentration of."""
        direction, raw = params.float().movedim(1, -1).split((self.num_features, 1), -1)
        direction = direction + 1e-3 * _first_axis(direction)  # the zero vector too has a direction, and a gradient
        grown = self.num_features * softplus(raw.squeeze(-1)) / LARGEST_CONCENTRATION
        concentration = SMALLEST_CONCENTRATION + LARGEST_CONCENTRATION * torch.tanh(grown)
        return _over_places(sphere.VonMisesFisher(normalize(direction, dim=-1), concentration))


def _first_axis(like: Tensor) -> Tensor:
    return (torch.arange(like.shape[-1], device=like.device) == 0).to(like.dtype)


def _over_places(vectors: Distribution) -> Distribution:
    """Batch (B,) as it is; batch (B, h, w) as one latent of independent places."""
    return Placewise(vectors) if len(vectors.batch_shape) == 3 else vectors


class Deterministic(nn.Module):
    """z = f(x), an autoencoder: all mass of q(z|x) in one point.

    `is_density` is False: there is no log q(z|x), it is 0 by convention. With model/prior=flat the rate is then 0 and
    the "elbo" minus the distortion; with a prior that has a density (of Wasserstein autoencoders, Tolstikhin et al.
    2018, arXiv:1711.01558) the rate is -log p(z). Neither is a bound on log p(x).
    """

    kind: Kind = "vector"
    is_density = False

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.num_params, self.num_features = latent_dim, latent_dim

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, D, *map), the latents."""
        return Delta(params.float())


class Delta(Distribution):
    """A point mass. value: (B, *event). It has no density: `log_prob` is 0 by convention, and `is_density` False."""

    arg_constraints = {}  # noqa: RUF012
    has_rsample = True
    is_density = False

    def __init__(self, value: Tensor) -> None:
        self.value = value
        super().__init__(value.shape[:1], value.shape[1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zeros, (*batch) of value (*batch, *event)."""
        return value.new_zeros(value.shape[: value.dim() - len(self.event_shape)])

    def rsample(self, sample_shape: Shape = NO_SHAPE) -> Tensor:
        """The value, (*sample_shape, B, *event)."""
        return self.value.expand(self._extended_shape(torch.Size(sample_shape)))

    @property
    def mean(self) -> Tensor:
        """The value, (B, *event)."""
        return self.value

    @property
    def mode(self) -> Tensor:
        """The value, (B, *event)."""
        return self.value

    @property
    def variance(self) -> Tensor:
        """Zeros, (B, *event)."""
        return torch.zeros_like(self.value)


def centre(posterior: Distribution, num_samples: int = 64) -> Tensor:
    """One z to stand for q(z|x), (B, *event): its mode; the mean of some samples where no mode is known."""
    try:
        return posterior.mode
    except NotImplementedError:
        return posterior.sample((num_samples,)).mean(0)
