"""What keeps an encoder's output near the codes that it is quantised to."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vae_lab.codes import Quantized
from vae_lab.regularizers.parts import Observation, Setting

CHOOSE = "choose model/posterior=nearest_code, or leave commitment out of objective/regularizers"


class Commitment(nn.Module):
    """Squared distance of the encoder's output from its codes, which are held constant; all layers of codes summed.

    Summed over features and places, as a likelihood sums over pixels; `weight` is the beta of van den Oord et al. 2017,
    arXiv:1711.00937, eq. 3. ValueError: no latent of codes; none that is quantised, when first called.
    """

    def __init__(self, setting: Setting, weight: float = 0.25) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"objective.regularizers.commitment.weight is at least 0; found {weight}")
        if all(latent.kind != "codes" for latent in setting.latents):
            raise ValueError(f"objective.regularizers.commitment: these latents are no codes; {CHOOSE}")
        self.weight = weight

    def forward(self, seen: Observation) -> Tensor:
        """(B,)."""
        posteriors = [latent.posterior for latent in seen.trace.latents]
        distances = [distance(posterior) for posterior in posteriors if isinstance(posterior, Quantized)]
        if not distances:
            raise ValueError(f"objective.regularizers.commitment: these latents are not quantised; {CHOOSE}")
        return torch.stack(distances).sum(0)


def distance(posterior: Quantized) -> Tensor:
    """|inputs - codes|^2, (B,); the gradient reaches the inputs."""
    return (posterior.inputs - posterior.mode.detach()).square().flatten(1).sum(1)
