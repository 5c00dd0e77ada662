"""What one pass of images through a model leaves behind; bounds and regularizers read nothing else."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.distributions import Distribution


class Latent(NamedTuple):
    """One stochastic layer: S posterior samples of B images."""

    z: Tensor  # (S, B, *event)
    posterior: Distribution  # q(z|x), batch (B,) or (S, B)
    prior: Distribution  # p(z), batch () or (B,) or (S, B)

    @property
    def log_ratio(self) -> Tensor:
        """log q(z|x) - log p(z), (S, B); computed when asked, for an ELBO with a KL in closed form never asks."""
        return self.posterior.log_prob(self.z) - self.prior.log_prob(self.z)


class Trace(NamedTuple):
    """A likelihood, and the latents it was decoded from, from the top of the hierarchy down."""

    likelihood: Distribution  # p(x|z), batch (S, B), event (C, H, W)
    latents: tuple[Latent, ...]
