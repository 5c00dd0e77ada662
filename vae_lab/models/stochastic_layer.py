"""One stochastic layer of a ladder: its posterior and its prior, given what is above."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.core import ConditionalPrior, Posterior, Prior, PriorInputs, RelativePosterior


class StochasticLayer(nn.Module):
    """The two families of one stochastic layer. is_top: whether nothing is above."""

    def __init__(self, posterior: Posterior, prior: Prior, is_top: bool) -> None:
        super().__init__()
        self.posterior, self.prior = posterior, prior
        self.is_relative = isinstance(posterior, RelativePosterior)
        self.num_prior_params = prior.num_params if isinstance(prior, ConditionalPrior) and not is_top else 0

    def prior_distribution(self, params: Tensor | None, y: Tensor | None) -> Distribution:
        """p(z | above), batch (N,); or batch () where nothing above matters. params: (N, num_prior_params, *map)."""
        if params is not None:
            assert isinstance(self.prior, ConditionalPrior)
            return self.prior.conditioned_on(params)
        return self.prior(PriorInputs(y, codes=getattr(self.posterior, "codes", None)))

    def require_compatible(self, shape: tuple[int, ...], conditional: bool) -> None:
        """ValueError: a prior that has to be told what a ladder's layer is not; a posterior that asks for another."""
        if getattr(self.prior, "needs_encoder", False):
            raise ValueError(
                f"model.prior: {type(self.prior).__name__} is made of posteriors of images, and a layer of a ladder "
                "has none but given those above.\nChoose model/prior=conditional_gaussian, or a model with one layer"
            )
        if self.num_prior_params:
            return  # they are known once something is above
        prior = self.prior_distribution(None, torch.zeros(1, dtype=torch.int64) if conditional else None)
        if isinstance(self.posterior, RelativePosterior):
            self.posterior.relative_to(prior, torch.zeros(1, self.posterior.num_params, *shape[1:]))

    def posterior_distribution(self, params: Tensor, prior: Distribution) -> Distribution:
        """q(z | x, above), batch (N,). params: (N, num_params, *map)."""
        if isinstance(self.posterior, RelativePosterior):
            return self.posterior.relative_to(prior, params)
        return self.posterior(params)
