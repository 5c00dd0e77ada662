"""Adversarial regularizers of latents (AAE against prior samples, FactorVAE against permuted ones) and images (GAN)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_lab.core import LatentKind, RegularizerInputs, TrainingSpec
from vae_lab.objectives.regularizers.base import (
    AdversarialRegularizer,
    require_number,
    require_single_latent,
    sample_prior,
)
from vae_lab.objectives.regularizers.discriminators import (
    DiscriminatorOutput,
    ImageDiscriminator,
    LatentDiscriminator,
    apply_frozen,
    non_saturating_loss,
    real_fake_cross_entropy,
)


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
        logits: Tensor = apply_frozen(self.discriminator, inputs.trace.latents[0].z)
        return logits

    def cross_entropy(self, real: Tensor, fake: Tensor) -> Tensor:
        """Of detached latents (S, B, *event), in nats, ()."""
        return real_fake_cross_entropy(*self.discriminator(torch.cat((real, fake))).chunk(2))


class AdversarialPosterior(LatentAdversary):
    """Adversarial loss of posterior samples against prior samples, in nats: the adversarial autoencoder.

    Makhzani et al. 2016, arXiv:1511.05644; with `objective.beta=0` it replaces the KL, as there and in WAE-GAN
    (Tolstikhin et al. 2018, arXiv:1711.01558, algorithm 1). It matches the aggregate posterior q(z) to p(z), of which
    only samples are needed. Prior samples carry no gradient: a learned prior is trained by the KL alone. The
    discriminator is not conditional on labels: a prior p(z|y) is matched as a whole, not class by class.

    Unlike the paper, one step updates all networks, so that `weight` matters. hidden: [1000, 1000] in the paper.
    ValueError: several layers of latents, latents that are codes; at the first step, a prior that has no samples.
    """

    kinds = ("vector", "sphere")

    def __init__(
        self,
        spec: TrainingSpec,
        weight: float,
        discriminator_lr: float = 2e-4,
        hidden: Sequence[int] = (256, 256),
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


class AdversarialImages(AdversarialRegularizer):
    """Adversarial loss of decoded images against real ones, in nats: VAE-GAN. Larsen et al. 2016, arXiv:1512.09300.

    Decoded images are the reconstructions and, with `prior_samples`, prior samples, both weighted by half; with several
    layers of latents, whose prior is not a single distribution, the reconstructions alone. feature_weight: weight of
    half the squared distance between an image and its reconstruction in the discriminator's middle feature map. In the
    paper this distance replaces the likelihood of the pixels (eq. 7), here it is added.

    The discriminator's input is the mean of p(x|z); for binary images, which are trivially separable from grey means,
    pixels sampled with the means as probabilities and a straight-through gradient (Bengio et al. 2013,
    arXiv:1308.3432).

    Unlike the paper, the encoder also gets a gradient from the discriminator, through the reconstructions, and there is
    no batch normalisation: spectral_norm keeps the discriminator smooth instead. ValueError: at the first step, a prior
    that has no samples.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        weight: float,
        discriminator_lr: float = 2e-4,
        feature_weight: float = 0.1,
        prior_samples: bool = True,
        width: int = 32,
        max_width: int = 256,
        spectral_norm: bool = True,
    ) -> None:
        super().__init__("adversarial_images", weight, discriminator_lr, (width, max_width))
        require_number("adversarial_images", "feature_weight", feature_weight)
        self.feature_weight = feature_weight
        self.prior_samples = prior_samples and len(spec.latents) == 1
        self.binary = spec.image.levels == 2
        self.discriminator = ImageDiscriminator(spec.image.shape, 1, width, max_width, spectral_norm)

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """-log D(decoded), D the probability of a real image, plus the feature distance, (B,); mean over samples."""
        means = inputs.trace.likelihood.mean  # (S, B, C, H, W)
        of_means: DiscriminatorOutput = apply_frozen(self.discriminator, self._discriminator_input(means.flatten(0, 1)))
        penalty = non_saturating_loss(of_means.logits).view(means.shape[:2]).mean(0)
        if self.prior_samples:
            samples = self._discriminator_input(self._prior_sample_means(inputs))
            of_samples: DiscriminatorOutput = apply_frozen(self.discriminator, samples)
            penalty = (penalty + non_saturating_loss(of_samples.logits).squeeze(1)) / 2
        if self.feature_weight:
            of_x: DiscriminatorOutput = apply_frozen(self.discriminator, inputs.x)
            penalty = penalty + self.feature_weight * middle_layer_distance(of_x, of_means).mean(0)
        return penalty

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor:
        """Cross-entropy of real images against decoded ones, in nats, ()."""
        with torch.no_grad():
            groups = [inputs.x, self._discriminator_input(inputs.trace.likelihood.mean.flatten(0, 1))]
            if self.prior_samples:
                groups.append(self._discriminator_input(self._prior_sample_means(inputs)))
        output: DiscriminatorOutput = self.discriminator(torch.cat(groups))
        real, *decoded = output.logits.split([len(images) for images in groups])
        return real_fake_cross_entropy(real, *decoded)

    def _prior_sample_means(self, inputs: RegularizerInputs) -> Tensor:
        """Means of p(x|z) at prior samples z, one per image of the batch, (B, C, H, W)."""
        samples: Tensor = inputs.decode(sample_prior(inputs.trace.latents[0], inputs.x.shape[:1])).mean
        return samples

    def _discriminator_input(self, means: Tensor) -> Tensor:
        return straight_through_bernoulli(means) if self.binary else means


def straight_through_bernoulli(means: Tensor) -> Tensor:
    """Bernoulli samples with these means, and the gradient of the means; any shape."""
    pixels: Tensor = (torch.rand_like(means) < means).to(means.dtype)
    return pixels + (means - means.detach())  # adds exactly 0, or NaN if the mean is NaN: a non-finite step is detected


def middle_layer_distance(of_x: DiscriminatorOutput, of_means: DiscriminatorOutput) -> Tensor:
    """Half the squared distance between S reconstructions and their images in the middle feature map, (S, B)."""
    middle = len(of_x.features) // 2
    ours, theirs = of_x.features[middle], of_means.features[middle]
    differences: Tensor = theirs.unflatten(0, (-1, len(ours))) - ours
    return differences.float().square().sum((-3, -2, -1)) / 2
