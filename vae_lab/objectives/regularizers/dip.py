"""Penalty on the covariance of the aggregate posterior, towards the identity: DIP-VAE I and II."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from vae_lab.core import RegularizerInputs, TrainingSpec
from vae_lab.distributions.gaussians import as_diagonal_normal
from vae_lab.objectives.regularizers.base import Regularizer, require_number, require_single_latent


class DisentangledInferredPrior(Regularizer):
    """Squared distance between a covariance and the identity: off the diagonal, plus `diagonal` times on the diagonal.

    Kumar et al. 2018, arXiv:1711.00848, eqs. 6 and 7. covariance: of the `means` of q(z|x) (DIP-VAE-I), or of the
    `latents` themselves (DIP-VAE-II), which is that plus the mean covariance of q(z|x). The batch stands for the
    training set. weight: the paper's lambda_od; diagonal: its lambda_d / lambda_od.

    ValueError: several layers of latents, latents that are not vectors; at the first step, a posterior that is not
    Gaussian.
    """

    def __init__(
        self, spec: TrainingSpec, weight: float, diagonal: float, covariance: Literal["means", "latents"]
    ) -> None:
        name = "dip_vae_ii" if covariance == "latents" else "dip_vae_i"
        super().__init__(name, weight)
        require_single_latent(spec, name)
        require_number(name, "diagonal", diagonal)
        self.diagonal, self.covariance = diagonal, covariance

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """The penalty of the batch, (); 0 for a single image, which has no covariance."""
        [latent] = inputs.trace.latents
        if latent.z.shape[1] == 1:
            return latent.z.new_zeros(())
        with torch.autocast(latent.z.device.type, enabled=False):
            covariance = self._covariance(latent.posterior)
        variances = covariance.diagonal()
        off_diagonal = (covariance - variances.diag()).square().sum()
        return off_diagonal + self.diagonal * (variances - 1).square().sum()

    def _covariance(self, posterior: Distribution) -> Tensor:
        means, within = gaussian_moments(posterior)
        between = sample_covariance(means)
        return between + within if self.covariance == "latents" else between


def sample_covariance(rows: Tensor) -> Tensor:
    """The unbiased covariance of the columns of `rows` (B, D), over B > 1 rows, (D, D)."""
    centred = rows - rows.mean(0)
    return centred.mT @ centred / (len(rows) - 1)


def gaussian_moments(posterior: Distribution) -> tuple[Tensor, Tensor]:
    """Means of q(z|x), (B, D), and their mean covariance, (D, D). ValueError: a posterior that is not Gaussian."""
    if as_diagonal_normal(posterior) is not None:
        return posterior.mean.flatten(1), posterior.variance.flatten(1).mean(0).diag()
    if isinstance(posterior, MultivariateNormal):
        return posterior.mean, posterior.covariance_matrix.mean(0)
    raise ValueError(
        "objective.regularizers: DIP-VAE needs the mean and the covariance of q(z|x): choose "
        "model/posterior=diagonal_gaussian, or full_covariance where latents are vectors "
        f"(found {type(posterior).__name__})"
    )
