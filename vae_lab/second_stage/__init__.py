"""A second stage: a prior fitted to the latents of a trained model, in the place of the one it was trained with."""

from vae_lab.second_stage.fitting import DirectFit, GradientFit, Standardized
from vae_lab.second_stage.stage import SecondStage

__all__ = ["DirectFit", "GradientFit", "SecondStage", "Standardized"]
