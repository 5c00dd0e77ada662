"""Second stage: a prior fitted to the latents of a trained model, replacing the prior it was trained with."""

from vae_lab.second_stage.fitting import DirectFit, GradientFit, StandardizedPrior
from vae_lab.second_stage.stage import SecondStage

__all__ = ["DirectFit", "GradientFit", "SecondStage", "StandardizedPrior"]
