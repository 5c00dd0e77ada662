"""Priors p(z): modules whose call gives a torch Distribution over one latent."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal


class StandardNormal(nn.Module):
    """N(0, I) over a latent of shape (D,)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        # Not in a checkpoint: they are constants, and buffers only to follow the model to its device.
        self.register_buffer("mean", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> Distribution:
        """p(z), batch (), event (D,)."""
        return Independent(Normal(self.mean, self.scale, validate_args=False), 1, validate_args=False)
