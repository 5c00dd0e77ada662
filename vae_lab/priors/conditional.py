"""The prior of a ladder's layer, conditioned on the layers above."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vae_lab.core import NO_INPUTS, ConditionalPrior, LatentSpec, PriorInputs
from vae_lab.distributions.gaussians import diagonal_normal, soft_clamp
from vae_lab.priors.fixed import StandardNormal

LOG_SCALE_LIMIT = 5.0  # bound on the prior's log scale


class ConditionalGaussian(ConditionalPrior):
    """A diagonal Gaussian with means and bounded log scales from the layers above; N(0, I) at the top."""

    def __init__(self, latent: LatentSpec) -> None:
        super().__init__()
        self.num_params = 2 * latent.shape[0]
        self.top_prior = StandardNormal(latent)

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        """N(0, I), batch ()."""
        prior: Distribution = self.top_prior(inputs)
        return prior

    def conditioned_on(self, params: Tensor) -> Distribution:
        """params: (N, 2 D, *map), means then log scales. Batch (N,)."""
        mean, log_scale = params.float().chunk(2, 1)
        return diagonal_normal(mean, soft_clamp(log_scale, LOG_SCALE_LIMIT).exp())
