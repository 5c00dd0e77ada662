"""Regularizers: penalties added to the bound, and discriminators trained alongside the model."""

from vae_lab.objectives.regularizers.adversarial import AdversarialPosterior, DensityRatio
from vae_lab.objectives.regularizers.base import AdversarialRegularizer, Regularizer
from vae_lab.objectives.regularizers.images import AdversarialImages, Perceptual
from vae_lab.objectives.regularizers.latents import (
    Commitment,
    DisentangledInferredPrior,
    MaximumMeanDiscrepancy,
    TotalCorrelation,
)
from vae_lab.objectives.regularizers.spectral import Spectral

__all__ = [
    "AdversarialImages",
    "AdversarialPosterior",
    "AdversarialRegularizer",
    "Commitment",
    "DensityRatio",
    "DisentangledInferredPrior",
    "MaximumMeanDiscrepancy",
    "Perceptual",
    "Regularizer",
    "Spectral",
    "TotalCorrelation",
]
