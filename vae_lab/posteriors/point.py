"""Posteriors without spread: an autoencoder's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.densities.pixels import NO_SHAPE, SampleShape
from vae_lab.latents import Kind


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

    def rsample(self, sample_shape: SampleShape = NO_SHAPE) -> Tensor:
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
