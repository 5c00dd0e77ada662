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

from vae_lab.latents import Kind

LOGVAR_LIMIT = 20.0  # standard deviations of a posterior between 0.000045 and 22,000; near the identity down to 0.01


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
    scale = torch.exp(LOGVAR_LIMIT / 2 * torch.tanh(logvar / LOGVAR_LIMIT))  # half of the bounded log variance
    return Independent(Normal(mean, scale, validate_args=False), mean.dim() - 1, validate_args=False)


def centre(posterior: Distribution, num_samples: int = 64) -> Tensor:
    """One z to stand for q(z|x), (B, *event): its mode; the mean of some samples where no mode is known."""
    try:
        return posterior.mode
    except NotImplementedError:
        return posterior.sample((num_samples,)).mean(0)
