"""Posteriors over vectors: Gaussians, their limit of no variance, and von Mises-Fisher on the unit sphere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import normalize, softplus

from vae_lab.core import LatentKind, Posterior, RelativePosterior
from vae_lab.distributions import sphere
from vae_lab.distributions.base import Delta
from vae_lab.distributions.gaussians import (
    FullNormal,
    as_diagonal_normal,
    bounded_scale,
    diagonal_normal,
    scale_tril,
    soft_clamp,
)
from vae_lab.distributions.reshaped import to_spatial

MEAN_LIMIT = 10.0  # bound on the difference between the means of a residual posterior and its prior
LOG_SCALE_LIMIT = 5.0  # bound on the log ratio of their scales
MIN_CONCENTRATION, MAX_CONCENTRATION = 1e-3, 1e5  # on the sphere: nearly uniform; standard deviations of 0.003


class DiagonalGaussian(Posterior):
    """N(mean, diag exp(logvar)), both from the encoder, logvar bounded. Kingma & Welling 2014, arXiv:1312.6114."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.num_params, self.num_features = 2 * latent_dim, latent_dim

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, 2 D, *map), means then log variances."""
        mean, logvar = params.float().chunk(2, 1)
        return diagonal_normal(mean, bounded_scale(logvar))


class FullCovarianceGaussian(Posterior):
    """N(mean, L L^T), L lower triangular with bounded diagonal. Kingma & Welling 2019, arXiv:1906.02691, 2.5.1.

    On a feature map, the features of each position have their own covariance; a joint one over all positions would need
    (D h w)^2 / 2 encoder outputs.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self._parts = (latent_dim, latent_dim, latent_dim * (latent_dim - 1) // 2)
        self.num_params, self.num_features = sum(self._parts), latent_dim

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, 2 D + D (D - 1) / 2, *map): means, log variances (L's diagonal), L below it row by row."""
        mean, logvar, below = params.float().movedim(1, -1).split(self._parts, -1)
        return to_spatial(FullNormal(mean, scale_tril=scale_tril(logvar, below), validate_args=False))


class ResidualGaussian(RelativePosterior):
    """N(prior mean + difference, diag (prior scale * ratio)^2), both bounded so that the KL cannot overflow.

    Vahdat & Kautz 2020, arXiv:2007.03898, eq. 3. In a plain VAE: a diagonal Gaussian, relative to N(0, I).
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.num_params, self.num_features = 2 * latent_dim, latent_dim

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, 2 D, *map), means then log scales. Batch (B,)."""
        difference, log_ratio = self._bounded(params)
        return diagonal_normal(difference, log_ratio.exp())

    def relative_to(self, prior: Distribution, params: Tensor) -> Distribution:
        """params: (N, 2 D, *map), mean differences then log scale ratios. ValueError: a prior that is not Gaussian."""
        base = as_diagonal_normal(prior)
        if base is None:
            raise ValueError(
                f"model/posterior=residual_gaussian needs a diagonal Gaussian prior; found "
                f"{type(prior).__name__}.\nChoose model/prior=conditional_gaussian or standard_normal, or "
                "model/posterior=diagonal_gaussian"
            )
        difference, log_ratio = self._bounded(params)
        return diagonal_normal(base.loc + difference, base.scale * log_ratio.exp())

    @staticmethod
    def _bounded(params: Tensor) -> tuple[Tensor, Tensor]:
        difference, log_ratio = params.float().chunk(2, 1)
        return soft_clamp(difference, MEAN_LIMIT), soft_clamp(log_ratio, LOG_SCALE_LIMIT)


class Deterministic(Posterior):
    """z = f(x), as in an autoencoder: q(z|x) is a point mass.

    `is_density` is False: log q(z|x) does not exist and is 0 by convention. With model/prior=flat the rate is then 0
    and the "elbo" is minus the distortion; with a prior that has a density (Wasserstein autoencoders, Tolstikhin et al.
    2018, arXiv:1711.01558) the rate is -log p(z). Neither is a bound on log p(x).
    """

    is_density = False

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.num_params, self.num_features = latent_dim, latent_dim

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, D, *map), the latents."""
        return Delta(params.float())


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
