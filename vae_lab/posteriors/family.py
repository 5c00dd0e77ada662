"""What a posterior family is, and one z to stand for its distribution."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.distributions import Distribution

from vae_lab.latents import Kind


class Posterior(Protocol):
    """q(z|x) from an encoder's output (B, num_params, *map)."""

    kind: Kind
    num_params: int
    num_features: int  # mostly latent_dim

    def __call__(self, params: Tensor) -> Distribution:
        """Batch (B,), event (num_features, *map)."""
        ...


def centre(posterior: Distribution, num_samples: int = 64) -> Tensor:
    """One z to stand for q(z|x), (B, *event): its mode; the mean of some samples where no mode is known."""
    try:
        return posterior.mode
    except NotImplementedError:
        return posterior.sample((num_samples,)).mean(0)
