"""The families of a ladder's layer: a prior given what is above, and a posterior given that prior.

Any family of a plain VAE is also one of a layer; those here may depend on more. Of a plain VAE, or at the top of a
ladder, where nothing is above, the conditional prior is standard normal.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vae_lab.densities.gaussians import normal_of
from vae_lab.latents import NOTHING, Given, Kind, LatentSpec
from vae_lab.likelihoods import bounded
from vae_lab.posteriors.family import Posterior
from vae_lab.priors.family import Prior
from vae_lab.priors.fixed import StandardNormal

MEAN_LIMIT = 10.0  # of how far a posterior's mean lies from the prior's
LOG_SCALE_LIMIT = 5.0  # of a prior's log scale, and of a posterior's relative to it


@runtime_checkable
class ConditionalPrior(Prior, Protocol):
    """p(z | what is above); without anything above, what its call gives."""

    num_params: int  # asked of what is above

    def below(self, params: Tensor) -> Distribution:
        """params: (N, num_params, *map). Batch (N,)."""
        ...


@runtime_checkable
class RelativePosterior(Posterior, Protocol):
    """q(z|x) told by its difference from a prior; its call takes a standard normal one."""

    def around(self, prior: Distribution, params: Tensor) -> Distribution:
        """params: (N, num_params, *map); of 0, the prior. Batch (N,). ValueError: a prior of another family."""
        ...


class ConditionalGaussian(nn.Module):
    """A diagonal Gaussian whose means and bounded log scales come from what is above; N(0, I) where nothing is."""

    kinds: tuple[Kind, ...] = ("vector",)

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.num_params = 2 * latent.shape[0]
        self.at_top = StandardNormal(latent)

    def forward(self, given: Given = NOTHING) -> Distribution:
        """N(0, I), batch ()."""
        prior: Distribution = self.at_top(given)
        return prior

    def below(self, params: Tensor) -> Distribution:
        """params: (N, 2 D, *map), means then log scales. Batch (N,)."""
        mean, log_scale = params.float().chunk(2, 1)
        return gaussian(mean, bounded(log_scale, LOG_SCALE_LIMIT).exp())


class ResidualGaussian(nn.Module):
    """N(prior's mean + difference, diag (prior's scale * ratio)^2), both bounded, so that no KL can overflow.

    Vahdat & Kautz 2020, arXiv:2007.03898, eq. 3. In a plain VAE: a diagonal Gaussian, bounded around N(0, I).
    """

    kind: Kind = "vector"

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.num_params, self.num_features = 2 * latent_dim, latent_dim

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, 2 D, *map), means then log scales. Batch (B,)."""
        difference, log_ratio = self._bounded(params)
        return gaussian(difference, log_ratio.exp())

    def around(self, prior: Distribution, params: Tensor) -> Distribution:
        """params: (N, 2 D, *map), differences of means then of log scales. ValueError: a prior that is no Gaussian."""
        base = normal_of(prior)
        if base is None:
            raise ValueError(
                f"model/posterior=residual_gaussian differs from a diagonal Gaussian, and the prior is a "
                f"{type(prior).__name__}.\nChoose model/prior=conditional_gaussian or standard_normal, or "
                "model/posterior=diagonal_gaussian"
            )
        difference, log_ratio = self._bounded(params)
        return gaussian(base.loc + difference, base.scale * log_ratio.exp())

    @staticmethod
    def _bounded(params: Tensor) -> tuple[Tensor, Tensor]:
        difference, log_ratio = params.float().chunk(2, 1)
        return bounded(difference, MEAN_LIMIT), bounded(log_ratio, LOG_SCALE_LIMIT)


def gaussian(mean: Tensor, scale: Tensor) -> Distribution:
    """A diagonal Gaussian, (N, D, *map) each; all but N the event."""
    return Independent(Normal(mean, scale, validate_args=False), mean.dim() - 1, validate_args=False)


class Layer(nn.Module):
    """The two families of one stochastic layer. is_top: whether nothing is above."""

    def __init__(self, posterior: Posterior, prior: Prior, is_top: bool) -> None:
        super().__init__()
        self.posterior, self.prior = posterior, prior
        self.is_relative = isinstance(posterior, RelativePosterior)
        self.num_prior_params = prior.num_params if isinstance(prior, ConditionalPrior) and not is_top else 0

    def prior_of(self, params: Tensor | None, y: Tensor | None) -> Distribution:
        """p(z | above), batch (N,); or batch () where nothing above matters. params: (N, num_prior_params, *map)."""
        if params is not None:
            assert isinstance(self.prior, ConditionalPrior)
            return self.prior.below(params)
        return self.prior(Given(y, codes=getattr(self.posterior, "codes", None)))

    def require_fitting(self, shape: tuple[int, ...], conditional: bool) -> None:
        """ValueError: a prior that has to be told what a ladder's layer is not; a posterior that asks for another."""
        if getattr(self.prior, "encodes", False):
            raise ValueError(
                f"model.prior: {type(self.prior).__name__} is made of posteriors of images, and a layer of a ladder "
                "has none but given those above.\nChoose model/prior=conditional_gaussian, or a model with one layer"
            )
        if self.num_prior_params:
            return  # they are known once something is above
        prior = self.prior_of(None, torch.zeros(1, dtype=torch.int64) if conditional else None)
        if isinstance(self.posterior, RelativePosterior):
            self.posterior.around(prior, torch.zeros(1, self.posterior.num_params, *shape[1:]))

    def posterior_of(self, params: Tensor, prior: Distribution) -> Distribution:
        """q(z | x, above), batch (N,). params: (N, num_params, *map)."""
        if isinstance(self.posterior, RelativePosterior):
            return self.posterior.around(prior, params)
        return self.posterior(params)
