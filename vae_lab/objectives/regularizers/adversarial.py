"""Adversarial regularizers: match latents to prior samples (AAE), or decoded images to real ones (VAE-GAN)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vae_lab.core import RegularizerInputs, TrainingSpec
from vae_lab.objectives.regularizers.base import AdversarialRegularizer
from vae_lab.objectives.regularizers.checks import require_number, require_single_latent, sample_prior
from vae_lab.objectives.regularizers.discriminators import (
    DiscriminatorOutput,
    ImageDiscriminator,
    LatentDiscriminator,
    apply_frozen,
    non_saturating_loss,
    real_fake_cross_entropy,
    require_discriminator,
)


class AdversarialPosterior(AdversarialRegularizer):
    """Adversarial loss of posterior samples against prior samples, in nats: the adversarial autoencoder.

    Makhzani et al. 2016, arXiv:1511.05644; with `objective.beta=0` it replaces the KL, as there and in WAE-GAN
    (Tolstikhin et al. 2018, arXiv:1711.01558, algorithm 1). It matches the aggregate posterior q(z) to p(z), of which
    only samples are needed. Prior samples carry no gradient: a learned prior is trained by the KL alone. The
    discriminator is not conditional on labels: a prior p(z|y) is matched as a whole, not class by class.

    Unlike the paper, one step updates all networks, so that `weight` matters. hidden: [1000, 1000] in the paper.
    ValueError: several layers of latents, latents that are codes; at the first step, a prior that has no samples.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        weight: float,
        discriminator_lr: float = 2e-4,
        hidden: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        latent = require_single_latent(spec, "adversarial_posterior", ("vector", "sphere"))
        require_discriminator("adversarial_posterior", weight, discriminator_lr, hidden)
        self.weight, self.discriminator_lr = weight, discriminator_lr
        self.discriminator = LatentDiscriminator(latent.shape, hidden)

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """-log D(z), (B,), averaged over samples, D the probability of a prior sample; ln 2 where q(z) matches p(z)."""
        logits: Tensor = apply_frozen(self.discriminator, inputs.trace.latents[0].z)
        return non_saturating_loss(logits).mean(0)

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor:
        """Cross-entropy of prior samples against posterior samples, in nats, ()."""
        latent = inputs.trace.latents[0]
        prior = sample_prior(latent, latent.z.shape[:2])
        prior_logits, posterior_logits = self.discriminator(torch.cat((prior, latent.z.detach()))).chunk(2)
        return real_fake_cross_entropy(prior_logits, posterior_logits)


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
        super().__init__()
        require_discriminator("adversarial_images", weight, discriminator_lr, (width, max_width))
        require_number("adversarial_images", "feature_weight", feature_weight)
        self.weight, self.discriminator_lr, self.feature_weight = weight, discriminator_lr, feature_weight
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
