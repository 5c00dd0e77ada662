"""The prior of a ladder's layer: given what is above."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.core import NOTHING, Given, Kind, LatentSpec
from vae_lab.distributions.gaussians import bounded, gaussian
from vae_lab.priors.fixed import StandardNormal

LOG_SCALE_LIMIT = 5.0  # of a prior's log scale, and of a posterior's relative to it


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
