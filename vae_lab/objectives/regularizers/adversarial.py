"""Adversarial regularizers of latents: against prior samples (AAE) and against permuted ones (FactorVAE)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_lab.core import LatentKind, RegularizerInputs, TrainingSpec
from vae_lab.networks.mlp import dense
from vae_lab.objectives.regularizers.base import (
    AdversarialRegularizer,
    leaky_relu,
    non_saturating_loss,
    real_fake_cross_entropy,
    require_single_latent,
    sample_prior,
)


class LatentDiscriminator(nn.Module):
    """An MLP with one logit per latent."""

    def __init__(self, shape: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        sizes = [math.prod(shape), *hidden]
        self.layers = nn.Sequential(nn.Flatten(), *dense(sizes, leaky_relu), nn.Linear(sizes[-1], 1))

    def forward(self, z: Tensor) -> Tensor:
        """Logits (S, B), float32, of z (S, B, *shape)."""
        logits: Tensor = self.layers(z.flatten(0, 1))
        return logits.float().view(z.shape[:2])


class LatentAdversary(AdversarialRegularizer):
    """A discriminator of the latents. ValueError: several layers of them, or a kind that is not in `kinds`."""

    kinds: tuple[LatentKind, ...] = ("vector",)

    def __init__(
        self, name: str, spec: TrainingSpec, weight: float, discriminator_lr: float, hidden: Sequence[int]
    ) -> None:
        latent = require_single_latent(spec, name, self.kinds)
        super().__init__(name, weight, discriminator_lr, hidden)
        self.discriminator = LatentDiscriminator(latent.shape, hidden)

    def logits(self, inputs: RegularizerInputs) -> Tensor:
        """Of the posterior samples, (S, B), with constant parameters of the discriminator."""
        logits: Tensor = self.frozen(inputs.trace.latents[0].z)
        return logits

    def cross_entropy(self, real: Tensor, fake: Tensor) -> Tensor:
        """Of detached latents (S, B, *event), in nats, ()."""
        return real_fake_cross_entropy(*self.discriminator(torch.cat((real, fake))).chunk(2))


class AdversarialPosterior(LatentAdversary):
    """Adversarial loss of posterior samples against prior samples, in nats: the adversarial autoencoder.

    Makhzani et al. 2016, arXiv:1511.05644; with `objective.beta=0` it replaces the KL, as there and in WAE-GAN
    (Tolstikhin et al. 2018, arXiv:1711.01558, algorithm 1). Prior samples carry no gradient: a learned prior is trained
    by the KL alone. The discriminator is not conditional on labels: a prior p(z|y) is matched as a whole.

    Unlike the paper, one step updates all networks, so that `weight` matters. hidden: [1000, 1000] in the paper.
    ValueError: several layers of latents, latents that are codes; at the first step, a prior that has no samples.
    """

    kinds = ("vector", "sphere")

    def __init__(
        self, spec: TrainingSpec, weight: float, discriminator_lr: float = 2e-4, hidden: Sequence[int] = (256, 256)
    ) -> None:
        super().__init__("adversarial_posterior", spec, weight, discriminator_lr, hidden)

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """-log D(z), (B,), averaged over samples, D the probability of a prior sample; ln 2 where q(z) matches p(z)."""
        return non_saturating_loss(self.logits(inputs)).mean(0)

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor:
        """Cross-entropy of prior samples against posterior samples."""
        latent = inputs.trace.latents[0]
        return self.cross_entropy(sample_prior(latent, latent.z.shape[:2]), latent.z.detach())


class DensityRatio(LatentAdversary):
    """KL(q(z) || prod_d q(z_d)) in nats, by a discriminator's log-odds of latents against permuted ones.

    Kim & Mnih 2018, arXiv:1802.05983, algorithm 2; `weight` is their gamma. The discriminator separates latents from
    permuted ones, whose dimensions come from different images; its logit estimates log q(z) / prod_d q(z_d).

    Unlike the paper: the permuted latents are those of the same batch (of a second one there; the expected loss is the
    same); one logit instead of the difference of two; `hidden` makes a discriminator of a thirtieth the size of the
    paper's six layers of 1000; Adam's betas are those of the model's optimiser (there 0.5 and 0.9). ValueError: several
    layers of latents, latents that are not vectors, fewer than two dimensions.
    """

    def __init__(
        self, spec: TrainingSpec, weight: float, discriminator_lr: float = 1e-4, hidden: Sequence[int] = (256, 256, 256)
    ) -> None:
        super().__init__("density_ratio", spec, weight, discriminator_lr, hidden)
        if math.prod(spec.latents[0].shape) < 2:
            raise ValueError("model.latent_dim=1: total correlation needs at least 2 dimensions; remove density_ratio")

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """Estimate of log q(z) / prod_d q(z_d), (B,), mean over samples; its mean estimates the total correlation."""
        return self.logits(inputs).mean(0)

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor:
        """Cross-entropy of latents against permuted ones."""
        z = inputs.trace.latents[0].z.detach()
        return self.cross_entropy(z, permute_dimensions(z))


def permute_dimensions(z: Tensor) -> Tensor:
    """Latents (S, B, *event) with each dimension permuted separately over samples and images. Algorithm 1.

    Marginals are preserved; two dimensions come from the same image with probability 1 / B.
    """
    dimensions = z.flatten(0, 1).flatten(1)  # (S B, D)
    orders = torch.rand(dimensions.shape, device=z.device).argsort(0)
    return dimensions.gather(0, orders).view(z.shape)
