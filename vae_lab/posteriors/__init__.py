"""Posterior families: an encoder's output to q(z|x), a torch Distribution over one latent.

A family says how many parameters (`num_params`) it asks of an encoder and how many features (`num_features`) of z a
decoder gets. An encoder that leaves a map gives parameters (B, num_params, h, w), and the latent is a map too.
Densities are computed in float32 whatever the network's precision.
"""

from vae_lab.posteriors.codes import NearestCode, RelaxedCategorical
from vae_lab.posteriors.deterministic import Deterministic
from vae_lab.posteriors.flow import HouseholderFlow, InverseAutoregressiveFlow, PlanarFlow
from vae_lab.posteriors.gaussian import DiagonalGaussian, FullCovarianceGaussian
from vae_lab.posteriors.residual import ResidualGaussian
from vae_lab.posteriors.sphere import VonMisesFisher

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
