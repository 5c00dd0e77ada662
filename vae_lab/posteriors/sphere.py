"""Posteriors on spheres."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import normalize, softplus

from vae_lab.core import LatentKind
from vae_lab.distributions import sphere
from vae_lab.distributions.spatial import to_spatial

SMALLEST_CONCENTRATION, LARGEST_CONCENTRATION = 1e-3, 1e5  # nearly uniform; standard deviations of 0.003


class VonMisesFisher(nn.Module):
    """von Mises-Fisher on the unit sphere in R^D, D >= 2: the hyperspherical VAE. arXiv:1804.00891.

    The concentration is softplus of an output, times D: samples then keep to their direction, at the start about half
    of their length, whatever D is (with a concentration near 1, many dimensions would hide it). Over a map, a sphere at
    each place. ValueError: latent_dim < 2.
    """

    kind: LatentKind = "sphere"

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
        return to_spatial(sphere.VonMisesFisher(normalize(direction, dim=-1), concentration))


def _first_axis(like: Tensor) -> Tensor:
    return (torch.arange(like.shape[-1], device=like.device) == 0).to(like.dtype)
