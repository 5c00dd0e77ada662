"""Priors p(z): modules whose call gives a torch Distribution over one latent.

A prior says on which kinds of latents it lives (`kinds`), and gets what it may depend on as `PriorInputs`.
"""

from vae_lab.priors.codes import AutoregressiveCodes, UniformCodes
from vae_lab.priors.conditional import ConditionalGaussian
from vae_lab.priors.fixed import Flat, StandardNormal, UniformSphere
from vae_lab.priors.flow import FlowPrior
from vae_lab.priors.gaussian import ClassGaussian, FullGaussian, GaussianMixture
from vae_lab.priors.vamp import VampPrior

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
