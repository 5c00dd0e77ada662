"""Commitment loss: keeps the encoder's output near its codebook vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.core import RegularizerInputs, TrainingSpec
from vae_lab.distributions.codes import QuantizedDelta
from vae_lab.distributions.reshaped import UnflattenedBatch
from vae_lab.objectives.regularizers.base import Regularizer

REMEDY = "choose model/posterior=nearest_code, or remove commitment from objective/regularizers"


class Commitment(Regularizer):
    """Squared distance between the encoder's output and its detached codes, summed over all layers of codes.

    Summed over features and positions, as a likelihood sums over pixels; `weight` is the beta of van den Oord et al.
    2017, arXiv:1711.00937, eq. 3. ValueError: no latent of the kind codes; at the first call, none that is quantised.
    """

    def __init__(self, spec: TrainingSpec, weight: float = 0.25) -> None:
        super().__init__("commitment", weight)
        if all(latent.kind != "codes" for latent in spec.latents):
            raise ValueError(f"objective.regularizers.commitment: the model has no latents of the kind codes; {REMEDY}")

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """(B,), averaged over samples where a layer has separate codes for each sample of the layers above."""
        distances = [commitment_distance(latent.posterior) for latent in inputs.trace.latents]
        quantized = [each for each in distances if each is not None]
        if not quantized:
            raise ValueError(f"objective.regularizers.commitment: the latents are not quantised; {REMEDY}")
        return torch.stack(quantized).sum(0)


def commitment_distance(posterior: Distribution) -> Tensor | None:
    """|inputs - codes|^2, (B,), with a gradient for the inputs; None for a posterior that does not quantise."""
    if isinstance(posterior, UnflattenedBatch):
        flat = commitment_distance(posterior.base_dist)
        return None if flat is None else flat.unflatten(0, posterior.batch_shape).mean(0)
    if isinstance(posterior, QuantizedDelta):
        return (posterior.inputs - posterior.mode.detach()).square().flatten(1).sum(1)
    return None
