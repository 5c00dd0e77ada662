"""Total correlation of the aggregate posterior by a discriminator's density ratio: FactorVAE."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_lab.core import RegularizerInputs, TrainingSpec
from vae_lab.objectives.regularizers.base import AdversarialRegularizer
from vae_lab.objectives.regularizers.checks import require_single_latent
from vae_lab.objectives.regularizers.discriminators import (
    LatentDiscriminator,
    apply_frozen,
    real_fake_cross_entropy,
    require_discriminator,
)


class DensityRatio(AdversarialRegularizer):
    """KL(q(z) || prod_d q(z_d)) in nats, by a discriminator's log-odds of latents against permuted ones.

    Kim & Mnih 2018, arXiv:1802.05983, algorithm 2; `weight` is their gamma. The discriminator separates latents from
    permuted ones, whose dimensions come from different images; its logit estimates log q(z) / prod_d q(z_d).

    Unlike the paper: the permuted latents are those of the same batch (the paper encodes a second one for them; the
    discriminator's loss has a separate term for each kind, so its expectation is the same); one logit instead of the
    difference of two; and `hidden` defaults to a discriminator of a thirtieth the size of the paper's [1000, 1000,
    1000, 1000, 1000, 1000]. Adam's betas are those of the model's optimiser (0.5 and 0.9 for the paper's
    discriminator).

    ValueError: several layers of latents, latents that are not vectors, fewer than two dimensions.
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
            raise ValueError("model.latent_dim=1: total correlation needs at least 2 dimensions; remove density_ratio")
        self.weight, self.discriminator_lr = weight, discriminator_lr
        self.discriminator = LatentDiscriminator(latent.shape, hidden)

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """Estimate of log q(z) / prod_d q(z_d), (B,), mean over samples; its mean estimates the total correlation."""
        logits: Tensor = apply_frozen(self.discriminator, inputs.trace.latents[0].z)
        return logits.mean(0)

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor:
        """Cross-entropy of latents against permuted ones, in nats, ()."""
        z = inputs.trace.latents[0].z.detach()
        joint_logits, permuted_logits = self.discriminator(torch.cat((z, permute_dimensions(z)))).chunk(2)
        return real_fake_cross_entropy(joint_logits, permuted_logits)


def permute_dimensions(z: Tensor) -> Tensor:
    """Latents (S, B, *event) with each dimension permuted separately over samples and images. Algorithm 1.

    Marginals are preserved; two dimensions come from the same image with probability 1 / B.
    """
    dimensions = z.flatten(0, 1).flatten(1)  # (S B, D)
    orders = torch.rand(dimensions.shape, device=z.device).argsort(0)
    return dimensions.gather(0, orders).view(z.shape)
