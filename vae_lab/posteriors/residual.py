"""The posterior of a ladder's layer, parametrised relative to the prior."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vae_lab.core import RelativePosterior
from vae_lab.distributions.gaussians import as_diagonal_normal, diagonal_normal, soft_clamp

MEAN_LIMIT = 10.0  # bound on the difference between the posterior's and the prior's mean
LOG_SCALE_LIMIT = 5.0  # bound on the log ratio of the posterior's to the prior's scale


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
