"""VampPrior: a mixture of the posteriors of learned pseudo-inputs. Tomczak & Welling 2018, arXiv:1705.07120."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal

from vae_lab.core import NO_INPUTS, LatentKind, LatentSpec, Prior, PriorInputs
from vae_lab.distributions.gaussians import mixture
from vae_lab.distributions.reshaped import SpatialDistribution
from vae_lab.distributions.sphere import VonMisesFisher

GAIN = 10.0  # logits per weight; without it, black to white takes ten times as many optimiser steps


class VampPrior(Prior):
    """p(z) = 1/K sum_k q(z | u_k): a mixture of the posteriors of learned images u_k, the pseudo-inputs.

    num_pseudo_inputs: K. They pass through the encoder at each step, as K more images. A sigmoid keeps them in [0, 1]:
    on MNIST it gives a better bound than a clamp, which stops the gradient of saturated pixels. They start as noise.
    ValueError: K < 1; when called, no encoder, or a posterior whose density is not known everywhere.
    """

    kinds: tuple[LatentKind, ...] = ("vector", "sphere")
    needs_encoder = True

    def __init__(self, latent: LatentSpec, num_pseudo_inputs: int = 100) -> None:
        super().__init__()
        if num_pseudo_inputs < 1:
            raise ValueError(f"model.prior.num_pseudo_inputs is at least 1; found {num_pseudo_inputs}")
        self.weights = nn.Parameter(torch.randn(num_pseudo_inputs, *latent.image.shape) / GAIN)

    @property
    def pseudo_inputs(self) -> Tensor:
        """Images u, (K, C, H, W) in [0, 1]."""
        return torch.sigmoid(GAIN * self.weights)

    def forward(self, inputs: PriorInputs = NO_INPUTS) -> Distribution:
        if inputs.encode is None:
            raise ValueError("model/prior=vamp mixes posteriors, so it needs an encoder: `PriorInputs(encode=...)`")
        components = inputs.encode(self.pseudo_inputs)
        if not isinstance(components, (Independent, MultivariateNormal, VonMisesFisher, SpatialDistribution)):
            raise ValueError(
                "model/prior=vamp needs a posterior density known everywhere: choose model/posterior="
                f"diagonal_gaussian, full_covariance or von_mises_fisher (found {type(components).__name__})"
            )
        return mixture(torch.zeros(len(self.weights), device=self.weights.device), components)
