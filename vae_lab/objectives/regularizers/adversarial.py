"""Penalties by critics that tell latents or images of the model from those that they should look like: AAE, VAE-GAN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_lab.core import Observation, Setting
from vae_lab.objectives.regularizers.checks import prior_draws, require_number, the_latent
from vae_lab.objectives.regularizers.discriminators import (
    ImageCritic,
    Judgement,
    LatentCritic,
    constant,
    require_critic,
    surprise,
    telling_apart,
)


class AdversarialPosterior(nn.Module):
    """How surely a critic tells the posterior's latents from the prior's, in nats: the adversarial autoencoder.

    Makhzani et al. 2016, arXiv:1511.05644; with `objective.beta=0` it takes the place of the KL, as there and in
    WAE-GAN (Tolstikhin et al. 2018, arXiv:1711.01558, algorithm 1). It matches the aggregate q(z) to p(z), of which
    only samples are needed. Those carry no gradient: a prior that learns does so by the KL alone. The critic does not
    see labels: a prior p(z|y) is matched as a whole, not class by class.

    Other than there, one step updates all networks, so that `weight` counts. hidden: the paper's is [1000, 1000].
    ValueError: several layers of latents, latents that are codes; at the first step, a prior that has no samples.
    """

    def __init__(
        self,
        setting: Setting,
        weight: float,
        critic_lr: float = 2e-4,
        hidden: Sequence[int] = (256, 256),
    ) -> None:
        super().__init__()
        latent = the_latent(setting, "adversarial_posterior", ("vector", "sphere"))
        require_critic("adversarial_posterior", weight, critic_lr, hidden)
        self.weight, self.critic_lr = weight, critic_lr
        self.critic = LatentCritic(latent.shape, hidden)

    def forward(self, seen: Observation) -> Tensor:
        """-log of the chance that the critic gives to the prior, (B,), averaged over the samples; ln 2 at a match."""
        logits: Tensor = constant(self.critic, seen.trace.latents[0].z)
        return surprise(logits).mean(0)

    def critic_loss(self, seen: Observation) -> Tensor:
        """Cross-entropy of telling draws from the prior from the posterior's, in nats, ()."""
        latent = seen.trace.latents[0]
        prior = prior_draws(latent, latent.z.shape[:2])
        of_prior, of_posterior = self.critic(torch.cat((prior, latent.z.detach()))).chunk(2)
        return telling_apart(of_prior, of_posterior)


class AdversarialImages(nn.Module):
    """How surely a critic tells decoded images from real ones, in nats: VAE-GAN. Larsen et al. 2016, arXiv:1512.09300.

    Decoded are the reconstructions and, with `prior_samples`, draws from the prior, both counting half; of a model of
    several layers, whose prior is no one distribution, the reconstructions alone. feature_weight: of half the squared
    distance between an image and its reconstruction in the critic's middle map, the paper's likelihood (eq. 7) in the
    place of the pixels', here beside it.

    The critic is shown means; of binary images, which it would know from grey means at a glance, pixels drawn with the
    means as chances, with the gradient of the means (straight through: Bengio et al. 2013, arXiv:1308.3432).

    Other than there, the encoder too hears the critic, through the reconstructions; and nothing is batch-normalised:
    spectral_norm keeps the critic smooth instead. ValueError: at the first step, a prior that has no samples.
    """

    def __init__(
        self,
        setting: Setting,
        weight: float,
        critic_lr: float = 2e-4,
        feature_weight: float = 0.1,
        prior_samples: bool = True,
        width: int = 32,
        max_width: int = 256,
        spectral_norm: bool = True,
    ) -> None:
        super().__init__()
        require_critic("adversarial_images", weight, critic_lr, (width, max_width))
        require_number("adversarial_images", "feature_weight", feature_weight)
        self.weight, self.critic_lr, self.feature_weight = weight, critic_lr, feature_weight
        self.prior_samples = prior_samples and len(setting.latents) == 1
        self.binary = setting.image.levels == 2
        self.critic = ImageCritic(setting.image.shape, 1, width, max_width, spectral_norm)

    def forward(self, seen: Observation) -> Tensor:
        """-log of the chance that the critic gives to `real`, averaged over the samples, plus the distance, (B,)."""
        means = seen.trace.likelihood.mean  # (S, B, C, H, W)
        of_means: Judgement = constant(self.critic, self._shown(means.flatten(0, 1)))
        penalty = surprise(of_means.logits).view(means.shape[:2]).mean(0)
        if self.prior_samples:
            of_samples: Judgement = constant(self.critic, self._shown(self._samples(seen)))
            penalty = (penalty + surprise(of_samples.logits).squeeze(1)) / 2
        if self.feature_weight:
            of_x: Judgement = constant(self.critic, seen.x)
            penalty = penalty + self.feature_weight * middle_distance(of_x, of_means).mean(0)
        return penalty

    def critic_loss(self, seen: Observation) -> Tensor:
        """Cross-entropy of telling real images from decoded ones, in nats, ()."""
        with torch.no_grad():
            shown = [seen.x, self._shown(seen.trace.likelihood.mean.flatten(0, 1))]
            if self.prior_samples:
                shown.append(self._shown(self._samples(seen)))
        judged: Judgement = self.critic(torch.cat(shown))
        real, *decoded = judged.logits.split([len(images) for images in shown])
        return telling_apart(real, *decoded)

    def _samples(self, seen: Observation) -> Tensor:
        """Means of decoded draws from the prior, one for each image of the batch, (B, C, H, W)."""
        samples: Tensor = seen.decode(prior_draws(seen.trace.latents[0], seen.x.shape[:1])).mean
        return samples

    def _shown(self, means: Tensor) -> Tensor:
        return drawn(means) if self.binary else means


def drawn(means: Tensor) -> Tensor:
    """Pixels of 0 and 1 with these chances, and the gradient of the chances; any shape."""
    pixels: Tensor = (torch.rand_like(means) < means).to(means.dtype)
    return pixels + (means - means.detach())  # exactly 0; as no number where the mean is none, for a bad step shows


def middle_distance(of_x: Judgement, of_means: Judgement) -> Tensor:
    """Half the squared distance of S reconstructions from their images in the middle map, (S, B)."""
    middle = len(of_x.features) // 2
    ours, theirs = of_x.features[middle], of_means.features[middle]
    differences: Tensor = theirs.unflatten(0, (-1, len(ours))) - ours
    return differences.float().square().sum((-3, -2, -1)) / 2
