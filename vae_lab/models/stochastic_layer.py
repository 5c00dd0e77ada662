"""One stochastic layer of a ladder: its posterior and its prior, given the layers above."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.core import ConditionalPrior, Posterior, Prior, PriorInputs, RelativePosterior


class StochasticLayer(nn.Module):
    """The posterior and the prior of one stochastic layer. is_top: whether it has no layer above."""

    def __init__(self, posterior: Posterior, prior: Prior, is_top: bool) -> None:
        super().__init__()
        self.posterior, self.prior = posterior, prior
        self.is_relative = isinstance(posterior, RelativePosterior)
        self.num_prior_params = prior.num_params if isinstance(prior, ConditionalPrior) and not is_top else 0

    def prior_distribution(self, params: Tensor | None, y: Tensor | None) -> Distribution:
        """p(z | layers above), batch (N,), or () if it does not depend on them. params: (N, num_prior_params, *map)."""
        if params is not None:
            assert isinstance(self.prior, ConditionalPrior)
            return self.prior.conditioned_on(params)
        return self.prior(PriorInputs(y, codes=self.posterior.codes))

    def require_compatible(self, shape: tuple[int, ...], conditional: bool) -> None:
        """ValueError: a prior that a ladder's layer cannot use, or a posterior that is incompatible with the prior."""
        if self.prior.needs_encoder:
            raise ValueError(
                f"model.prior: {type(self.prior).__name__} needs q(z|x), but the posterior of a ladder's layer depends "
                "on the layers above.\nChoose model/prior=conditional_gaussian, or a model with one layer"
            )
        if self.num_prior_params:
            return  # its parameters come from the layers above, which are not there yet
        prior = self.prior_distribution(None, torch.zeros(1, dtype=torch.int64) if conditional else None)
        if isinstance(self.posterior, RelativePosterior):
            self.posterior.relative_to(prior, torch.zeros(1, self.posterior.num_params, *shape[1:]))

    def posterior_distribution(self, params: Tensor, prior: Distribution) -> Distribution:
        """q(z | x, layers above), batch (N,). params: (N, num_params, *map)."""
        if isinstance(self.posterior, RelativePosterior):
            return self.posterior.relative_to(prior, params)
        return self.posterior(params)
