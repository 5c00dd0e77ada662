"""von Mises-Fisher posterior on the unit sphere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import normalize, softplus

from vae_lab.core import LatentKind, Posterior
from vae_lab.distributions import sphere
from vae_lab.distributions.reshaped import to_spatial

MIN_CONCENTRATION, MAX_CONCENTRATION = 1e-3, 1e5  # nearly uniform; standard deviations of 0.003


class VonMisesFisher(Posterior):
    """von Mises-Fisher on the unit sphere in R^D, D >= 2: the hyperspherical VAE. arXiv:1804.00891.

    The concentration is D softplus(output): at initialisation the mean of samples has a length of about 1/2 whatever D
    is, whereas a concentration near 1 is almost uniform in many dimensions. On a feature map, one sphere per position.
    ValueError: latent_dim < 2.
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
        """params: (B, D + 1, *map), unnormalised directions, then the concentration before softplus."""
        direction, raw = params.float().movedim(1, -1).split((self.num_features, 1), -1)
        first_axis = torch.arange(self.num_features, device=direction.device) == 0
        direction = direction + 1e-3 * first_axis.to(direction.dtype)  # a zero vector needs a direction and a gradient
        grown = self.num_features * softplus(raw.squeeze(-1)) / MAX_CONCENTRATION
        concentration = MIN_CONCENTRATION + MAX_CONCENTRATION * torch.tanh(grown)
        return to_spatial(sphere.VonMisesFisher(normalize(direction, dim=-1), concentration))
