"""Priors p(z): modules that return a torch Distribution over one latent.

A prior declares the kinds of latents it supports (`kinds`) and is called with `PriorInputs`, all it may depend on.
"""

from vae_lab.priors.codes import AutoregressiveCodes, UniformCodes
from vae_lab.priors.fixed import Flat, StandardNormal, UniformSphere
from vae_lab.priors.learned import (
    ClassGaussian,
    ConditionalGaussian,
    FlowPrior,
    FullGaussian,
    GaussianMixture,
    VampPrior,
)

__all__ = [
    "AutoregressiveCodes",
    "ClassGaussian",
    "ConditionalGaussian",
    "Flat",
    "FlowPrior",
    "FullGaussian",
    "GaussianMixture",
    "StandardNormal",
    "UniformCodes",
    "UniformSphere",
    "VampPrior",
]
