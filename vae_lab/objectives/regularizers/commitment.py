"""What keeps an encoder's output near the codes that it is quantised to."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.core import RegularizerInputs, TrainingSpec
from vae_lab.distributions.codes import QuantizedDelta
from vae_lab.distributions.unflatten import UnflattenedBatch

CHOOSE = "choose model/posterior=nearest_code, or leave commitment out of objective/regularizers"


class Commitment(nn.Module):
    """Squared distance of the encoder's output from its codes, which are held constant; all layers of codes summed.

    Summed over features and places, as a likelihood sums over pixels; `weight` is the beta of van den Oord et al. 2017,
    arXiv:1711.00937, eq. 3. ValueError: no latent of codes; none that is quantised, when first called.
    """

    def __init__(self, spec: TrainingSpec, weight: float = 0.25) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"objective.regularizers.commitment.weight is at least 0; found {weight}")
        if all(latent.kind != "codes" for latent in spec.latents):
            raise ValueError(f"objective.regularizers.commitment: these latents are no codes; {CHOOSE}")
        self.weight = weight

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """(B,), averaged over samples where a layer has codes of its own for each sample of those above."""
        distances = [distance(latent.posterior) for latent in inputs.trace.latents]
        quantized = [each for each in distances if each is not None]
        if not quantized:
            raise ValueError(f"objective.regularizers.commitment: these latents are not quantised; {CHOOSE}")
        return torch.stack(quantized).sum(0)


def distance(posterior: Distribution) -> Tensor | None:
    """|inputs - codes|^2, (B,), with a gradient for the inputs; None of a posterior that does not quantise."""
    if isinstance(posterior, UnflattenedBatch):
        folded = distance(posterior.flat)
        return None if folded is None else folded.unflatten(0, posterior.batch_shape).mean(0)
    if isinstance(posterior, QuantizedDelta):
        return (posterior.inputs - posterior.mode.detach()).square().flatten(1).sum(1)
    return None
