"""The posterior of a ladder's layer: told by its difference from the prior."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.core import LatentKind
from vae_lab.distributions.gaussians import as_diagonal_normal, diagonal_normal, soft_clamp

MEAN_LIMIT = 10.0  # of how far a posterior's mean lies from the prior's
LOG_SCALE_LIMIT = 5.0  # of a prior's log scale, and of a posterior's relative to it


class ResidualGaussian(nn.Module):
    """N(prior's mean + difference, diag (prior's scale * ratio)^2), both bounded, so that no KL can overflow.

    Vahdat & Kautz 2020, arXiv:2007.03898, eq. 3. In a plain VAE: a diagonal Gaussian, bounded around N(0, I).
    """

    kind: LatentKind = "vector"

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.num_params, self.num_features = 2 * latent_dim, latent_dim

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, 2 D, *map), means then log scales. Batch (B,)."""
        difference, log_ratio = self._bounded(params)
        return diagonal_normal(difference, log_ratio.exp())

    def relative_to(self, prior: Distribution, params: Tensor) -> Distribution:
        """params: (N, 2 D, *map), differences of means then of log scales. ValueError: a prior that is no Gaussian."""
        base = as_diagonal_normal(prior)
        if base is None:
            raise ValueError(
                f"model/posterior=residual_gaussian differs from a diagonal Gaussian, and the prior is a "
                f"{type(prior).__name__}.\nChoose model/prior=conditional_gaussian or standard_normal, or "
                "model/posterior=diagonal_gaussian"
            )
        difference, log_ratio = self._bounded(params)
        return diagonal_normal(base.loc + difference, base.scale * log_ratio.exp())

    @staticmethod
    def _bounded(params: Tensor) -> tuple[Tensor, Tensor]:
        difference, log_ratio = params.float().chunk(2, 1)
        return soft_clamp(difference, MEAN_LIMIT), soft_clamp(log_ratio, LOG_SCALE_LIMIT)
