"""What one pass of images through a model leaves behind; bounds and regularizers read nothing else."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.distributions import Distribution


class Latent(NamedTuple):
    """One stochastic layer: S posterior samples of B images."""

    z: Tensor  # (S, B, *event)
    log_q: Tensor  # log q(z|x), (S, B)
    posterior: Distribution  # q(z|x), batch (B,) or (S, B)
    prior: Distribution  # p(z), batch () or (B,) or (S, B)


class Trace(NamedTuple):
    """A likelihood, and the latents it was decoded from, from the top of the hierarchy down."""

    likelihood: Distribution  # p(x|z), batch (S, B), event (C, H, W)
    latents: tuple[Latent, ...]
