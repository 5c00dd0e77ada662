"""Bounds, schedules, constraints and regularizers, and the objective that combines them."""

from vae_lab.objectives.bounds import (
    DistortionConstraint,
    doubly_reparameterized_bound,
    elbo,
    importance_weighted_bound,
)
from vae_lab.objectives.objective import Objective
from vae_lab.objectives.schedules import Constant, Cosine, Cyclical, LinearWarmup

__all__ = [
    "Constant",
    "Cosine",
    "Cyclical",
    "DistortionConstraint",
    "LinearWarmup",
    "Objective",
    "doubly_reparameterized_bound",
    "elbo",
    "importance_weighted_bound",
]
