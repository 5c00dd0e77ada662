"""Total correlation of the aggregate posterior by the density ratio that a discriminator learns: FactorVAE."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_lab.core import RegularizerInputs, TrainingSpec
from vae_lab.objectives.regularizers.checks import require_single_latent
from vae_lab.objectives.regularizers.discriminators import (
    LatentDiscriminator,
    apply_frozen,
    real_fake_cross_entropy,
    require_discriminator,
)


class DensityRatio(nn.Module):
    """KL(q(z) || product of its marginals) in nats, by a discriminator's log-odds that a latent is no mixture of several.

    Kim & Mnih 2018, arXiv:1802.05983, algorithm 2; `weight` is their gamma. The discriminator tells latents from permuted
    ones, of which each dimension comes from an image of its own; its logit estimates log q(z) / prod_d q(z_d).

    Other than there: the permuted latents are those of the same batch (the paper encodes a second one for them. The
    discriminator's loss is a sum over each kind alone, so that its expectation is the same); one logit rather than two, whose
    difference it is; and `hidden` defaults to a discriminator of a thirtieth of the paper's [1000, 1000, 1000, 1000, 1000,
    1000]. Adam's betas are those of the model's optimiser (the paper's discriminator has 0.5 and 0.9).

    ValueError: several layers of latents, latents that are no vectors, fewer than two dimensions.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        weight: float,
        discriminator_lr: float = 1e-4,
        hidden: Sequence[int] = (256, 256, 256),
    ) -> None:
        super().__init__()
        latent = require_single_latent(spec, "density_ratio", ("vector",))
        require_discriminator("density_ratio", weight, discriminator_lr, hidden)
        if math.prod(latent.shape) < 2:
            raise ValueError("model.latent_dim=1: one dimension has no total correlation; leave density_ratio out")
        self.weight, self.discriminator_lr = weight, discriminator_lr
        self.discriminator = LatentDiscriminator(latent.shape, hidden)

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """The estimate of log q(z) / prod_d q(z_d), averaged over samples, (B,); of the total correlation, its mean."""
        logits: Tensor = apply_frozen(self.discriminator, inputs.trace.latents[0].z)
        return logits.mean(0)

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor:
        """Cross-entropy of telling latents from permuted ones, in nats, ()."""
        z = inputs.trace.latents[0].z.detach()
        together, apart = self.discriminator(torch.cat((z, permuted(z)))).chunk(2)
        return real_fake_cross_entropy(together, apart)


def permuted(z: Tensor) -> Tensor:
    """Each dimension of the latents (S, B, *event) in an order of its own, over samples and images. Algorithm 1.

    Their marginals stay; two dimensions come from the same image with chance 1 / B.
    """
    dimensions = z.flatten(0, 1).flatten(1)  # (S B, D)
    orders = torch.rand(dimensions.shape, device=z.device).argsort(0)
    return dimensions.gather(0, orders).view(z.shape)
