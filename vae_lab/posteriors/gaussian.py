"""Gaussian posteriors: diagonal and full covariance."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from vae_lab.core import Posterior
from vae_lab.distributions.gaussians import FullNormal, bounded_scale, num_below_diagonal, scale_tril
from vae_lab.distributions.spatial import to_spatial


class DiagonalGaussian(Posterior):
    """N(mean, diag exp(logvar)), both from the encoder, logvar bounded. Kingma & Welling 2014, arXiv:1312.6114."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.num_params, self.num_features = 2 * latent_dim, latent_dim

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, 2 D, *map), means then log variances."""
        return diagonal_gaussian(*params.float().chunk(2, 1))


def diagonal_gaussian(mean: Tensor, logvar: Tensor) -> Distribution:
    """N(mean, diag exp(logvar)) with bounded log variance; arguments (B, D, *map), event (D, *map)."""
    normal = Normal(mean, bounded_scale(logvar), validate_args=False)
    return Independent(normal, mean.dim() - 1, validate_args=False)


class FullCovarianceGaussian(Posterior):
    """N(mean, L L^T), L lower triangular with bounded diagonal. Kingma & Welling 2019, arXiv:1906.02691, 2.5.1.

    On a feature map, the features of each position have their own covariance; a joint one over all positions would need
    (D h w)^2 / 2 encoder outputs.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.num_params, self.num_features = 2 * latent_dim + num_below_diagonal(latent_dim), latent_dim
        self._parts = (latent_dim, latent_dim, num_below_diagonal(latent_dim))

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, 2 D + D (D - 1) / 2, *map): means, log variances (L's diagonal), L below it row by row."""
        mean, logvar, below = params.float().movedim(1, -1).split(self._parts, -1)
        return to_spatial(FullNormal(mean, scale_tril=scale_tril(logvar, below), validate_args=False))
