"""Penalties by discriminators that tell latents or images of the model from those that they should look like: AAE, VAE-GAN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_lab.core import RegularizerInputs, TrainingSpec
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


class AdversarialPosterior(nn.Module):
    """How surely a discriminator tells the posterior's latents from the prior's, in nats: the adversarial autoencoder.

    Makhzani et al. 2016, arXiv:1511.05644; with `objective.beta=0` it takes the place of the KL, as there and in
    WAE-GAN (Tolstikhin et al. 2018, arXiv:1711.01558, algorithm 1). It matches the aggregate q(z) to p(z), of which
    only samples are needed. Those carry no gradient: a prior that learns does so by the KL alone. The discriminator does not
    see labels: a prior p(z|y) is matched as a whole, not class by class.

    Other than there, one step updates all networks, so that `weight` counts. hidden: the paper's is [1000, 1000].
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
        """-log of the chance that the discriminator gives to the prior, (B,), averaged over the samples; ln 2 at a match."""
        logits: Tensor = apply_frozen(self.discriminator, inputs.trace.latents[0].z)
        return non_saturating_loss(logits).mean(0)

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor:
        """Cross-entropy of telling draws from the prior from the posterior's, in nats, ()."""
        latent = inputs.trace.latents[0]
        prior = sample_prior(latent, latent.z.shape[:2])
        of_prior, of_posterior = self.discriminator(torch.cat((prior, latent.z.detach()))).chunk(2)
        return real_fake_cross_entropy(of_prior, of_posterior)


class AdversarialImages(nn.Module):
    """How surely a discriminator tells decoded images from real ones, in nats: VAE-GAN. Larsen et al. 2016, arXiv:1512.09300.

    Decoded are the reconstructions and, with `prior_samples`, draws from the prior, both counting half; of a model of
    several layers, whose prior is no one distribution, the reconstructions alone. feature_weight: of half the squared
    distance between an image and its reconstruction in the discriminator's middle map, the paper's likelihood (eq. 7) in the
    place of the pixels', here beside it.

    The discriminator is shown means; of binary images, which it would know from grey means at a glance, pixels drawn with the
    means as chances, with the gradient of the means (straight through: Bengio et al. 2013, arXiv:1308.3432).

    Other than there, the encoder too hears the discriminator, through the reconstructions; and nothing is batch-normalised:
    spectral_norm keeps the discriminator smooth instead. ValueError: at the first step, a prior that has no samples.
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
        """-log of the chance that the discriminator gives to `real`, averaged over the samples, plus the distance, (B,)."""
        means = inputs.trace.likelihood.mean  # (S, B, C, H, W)
        of_means: DiscriminatorOutput = apply_frozen(self.discriminator, self._shown(means.flatten(0, 1)))
        penalty = non_saturating_loss(of_means.logits).view(means.shape[:2]).mean(0)
        if self.prior_samples:
            of_samples: DiscriminatorOutput = apply_frozen(self.discriminator, self._shown(self._samples(inputs)))
            penalty = (penalty + non_saturating_loss(of_samples.logits).squeeze(1)) / 2
        if self.feature_weight:
            of_x: DiscriminatorOutput = apply_frozen(self.discriminator, inputs.x)
            penalty = penalty + self.feature_weight * middle_layer_distance(of_x, of_means).mean(0)
        return penalty

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor:
        """Cross-entropy of telling real images from decoded ones, in nats, ()."""
        with torch.no_grad():
            shown = [inputs.x, self._shown(inputs.trace.likelihood.mean.flatten(0, 1))]
            if self.prior_samples:
                shown.append(self._shown(self._samples(inputs)))
        judged: DiscriminatorOutput = self.discriminator(torch.cat(shown))
        real, *decoded = judged.logits.split([len(images) for images in shown])
        return real_fake_cross_entropy(real, *decoded)

    def _samples(self, inputs: RegularizerInputs) -> Tensor:
        """Means of decoded draws from the prior, one for each image of the batch, (B, C, H, W)."""
        samples: Tensor = inputs.decode(sample_prior(inputs.trace.latents[0], inputs.x.shape[:1])).mean
        return samples

    def _shown(self, means: Tensor) -> Tensor:
        return straight_through_bernoulli(means) if self.binary else means


def straight_through_bernoulli(means: Tensor) -> Tensor:
    """Pixels of 0 and 1 with these chances, and the gradient of the chances; any shape."""
    pixels: Tensor = (torch.rand_like(means) < means).to(means.dtype)
    return pixels + (means - means.detach())  # exactly 0; as no number where the mean is none, for a bad step shows


def middle_layer_distance(of_x: DiscriminatorOutput, of_means: DiscriminatorOutput) -> Tensor:
    """Half the squared distance of S reconstructions from their images in the middle map, (S, B)."""
    middle = len(of_x.features) // 2
    ours, theirs = of_x.features[middle], of_means.features[middle]
    differences: Tensor = theirs.unflatten(0, (-1, len(ours))) - ours
    return differences.float().square().sum((-3, -2, -1)) / 2
