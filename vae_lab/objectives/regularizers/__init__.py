"""Regularizers: penalties added to the bound, and discriminators trained alongside the model."""

from vae_lab.objectives.regularizers.adversarial import AdversarialImages, AdversarialPosterior, DensityRatio
from vae_lab.objectives.regularizers.commitment import Commitment
from vae_lab.objectives.regularizers.dip import DisentangledInferredPrior
from vae_lab.objectives.regularizers.mmd import MaximumMeanDiscrepancy
from vae_lab.objectives.regularizers.perceptual import Perceptual
from vae_lab.objectives.regularizers.spectral import Spectral
from vae_lab.objectives.regularizers.total_correlation import TotalCorrelation

__all__ = [
    "AdversarialImages",
    "AdversarialPosterior",
    "Commitment",
    "DensityRatio",
    "DisentangledInferredPrior",
    "MaximumMeanDiscrepancy",
    "Perceptual",
    "Spectral",
    "TotalCorrelation",
]
