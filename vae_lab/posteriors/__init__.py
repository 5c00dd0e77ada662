"""Posterior families: map an encoder's output to q(z|x), a torch Distribution over one latent.

A family declares `num_params`, the encoder outputs it needs, and `num_features`, the features of z that the decoder
gets. An encoder with spatial output gives parameters (B, num_params, h, w), and the latent is a feature map too.
Densities are computed in float32 whatever the network's precision.
"""

from vae_lab.posteriors.codes import NearestCode, RelaxedCategorical
from vae_lab.posteriors.flow import HouseholderFlow, InverseAutoregressiveFlow, PlanarFlow
from vae_lab.posteriors.vectors import (
    Deterministic,
    DiagonalGaussian,
    FullCovarianceGaussian,
    ResidualGaussian,
    VonMisesFisher,
)

__all__ = [
    "Deterministic",
    "DiagonalGaussian",
    "FullCovarianceGaussian",
    "HouseholderFlow",
    "InverseAutoregressiveFlow",
    "NearestCode",
    "PlanarFlow",
    "RelaxedCategorical",
    "ResidualGaussian",
    "VonMisesFisher",
]
