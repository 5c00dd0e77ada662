"""Regularizers of decoded images: adversarial (VAE-GAN), and a perceptual distance; nothing is downloaded."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations

from vae_lab.core import ImageShape, RegularizerInputs, TrainingSpec
from vae_lab.networks.conv import conv_output_side, same_padding
from vae_lab.objectives.regularizers.base import (
    AdversarialRegularizer,
    leaky_relu,
    non_saturating_loss,
    real_fake_cross_entropy,
    require_number,
    sample_prior,
)

KERNEL = 4  # kernel size of the convolutions of stride 2
NUM_FLIPS = 4  # orientations of an image: original, flipped left to right, upside down, both (a half turn)
TINY = 1e-8  # added to squared norms: a finite gradient at zero features


class DiscriminatorOutput(NamedTuple):
    """Output of an image discriminator for N images."""

    logits: Tensor  # (N, K), float32
    features: tuple[Tensor, ...]  # the map after each convolution, (N, channels, h, w)


class ImageDiscriminator(nn.Module):
    """Convolutions of stride 2, and K = num_logits logits of the last feature map.

    The map is halved, rounding down, while its shorter side is at least 4, so any image of at least 2x2 is accepted.
    Channels: `width`, doubled at each convolution up to max_width. spectral_norm: see arXiv:1802.05957.
    """

    def __init__(
        self, in_shape: ImageShape, num_logits: int, width: int, max_width: int = 256, spectral_norm: bool = False
    ) -> None:
        super().__init__()
        channels, *sides = in_shape
        self.stages = nn.ModuleList()
        while not self.stages or min(sides) >= KERNEL:
            wider, pad = min(width << len(self.stages), max_width), same_padding(KERNEL, 2)
            layer = nn.Conv2d(channels, wider, KERNEL, 2, pad)
            self.stages.append(nn.Sequential(layer, leaky_relu()))
            channels, sides = wider, [conv_output_side(side, KERNEL, 2, pad) for side in sides]
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(channels * math.prod(sides), num_logits))
        if spectral_norm:  # of each weight, estimated by power iteration in training
            for part in list(self.modules()):
                if isinstance(part, nn.Linear | nn.Conv2d):
                    parametrizations.spectral_norm(part)

    def forward(self, images: Tensor) -> DiscriminatorOutput:
        """images: (N, C, H, W)."""
        maps = [images]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return DiscriminatorOutput(self.head(maps[-1]).float(), tuple(maps[1:]))


class AdversarialImages(AdversarialRegularizer):
    """Adversarial loss of decoded images against real ones, in nats: VAE-GAN. Larsen et al. 2016, arXiv:1512.09300.

    Decoded images are the reconstructions and, with `prior_samples`, prior samples, both weighted by half; with several
    layers of latents, whose prior is not a single distribution, the reconstructions alone. feature_weight: of half the
    squared distance between an image and its reconstruction in the discriminator's middle feature map, which in the
    paper replaces the likelihood of the pixels (eq. 7). The discriminator's input is the mean of p(x|z); for binary
    images, which grey means would give away, `straight_through_bernoulli` of it.

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
        of_means = self.frozen(self._discriminator_input(means.flatten(0, 1)))
        penalty = non_saturating_loss(of_means.logits).view(means.shape[:2]).mean(0)
        if self.prior_samples:
            of_samples = self.frozen(self._discriminator_input(self._prior_sample_means(inputs)))
            penalty = (penalty + non_saturating_loss(of_samples.logits).squeeze(1)) / 2
        if self.feature_weight:
            distance = middle_layer_distance(self.frozen(inputs.x), of_means)
            penalty = penalty + self.feature_weight * distance.mean(0)
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
        return inputs.decode(sample_prior(inputs.trace.latents[0], inputs.x.shape[:1])).mean

    def _discriminator_input(self, means: Tensor) -> Tensor:
        return straight_through_bernoulli(means) if self.binary else means


def straight_through_bernoulli(means: Tensor) -> Tensor:
    """Bernoulli samples with these means, and the gradient of the means; any shape. arXiv:1308.3432."""
    pixels: Tensor = (torch.rand_like(means) < means).to(means.dtype)
    return pixels + (means - means.detach())  # adds exactly 0, or NaN if the mean is NaN: a non-finite step is detected


def middle_layer_distance(of_x: DiscriminatorOutput, of_means: DiscriminatorOutput) -> Tensor:
    """Half the squared distance between S reconstructions and their images in the middle feature map, (S, B)."""
    middle = len(of_x.features) // 2
    ours, theirs = of_x.features[middle], of_means.features[middle]
    differences: Tensor = theirs.unflatten(0, (-1, len(ours))) - ours
    return differences.float().square().sum((-3, -2, -1)) / 2


class Perceptual(AdversarialRegularizer):
    """Distance between images and reconstructions in the features of a small convolutional network.

    The deep feature consistent VAE (Hou et al. 2017, arXiv:1610.00291), added to the likelihood of the pixels rather
    than replacing it. The network is trained on the training images alone, to classify which of four orientations an
    image has: after Gidaris et al. 2018, arXiv:1803.07728, with flips instead of quarter turns, so that any image shape
    is accepted. The distance is that of Zhang et al. 2018, arXiv:1801.03924, eq. 1, all channels weighted 1: squared
    distance of unit-norm features, averaged over positions, summed over the feature maps (from 0 to 4 each).

    Reconstructions are the likelihood's means, also for binary images: the distance is to the expected image.
    """

    def __init__(
        self, spec: TrainingSpec, weight: float, discriminator_lr: float = 1e-3, width: int = 32, max_width: int = 256
    ) -> None:
        super().__init__("perceptual", weight, discriminator_lr, (width, max_width))
        self.discriminator = ImageDiscriminator(spec.image.shape, NUM_FLIPS, width, max_width)

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """The distance, (B,), averaged over samples."""
        means = inputs.trace.likelihood.mean  # (S, B, C, H, W)
        pairs = zip(self.frozen(inputs.x).features, self.frozen(means.flatten(0, 1)).features, strict=True)
        distances = [feature_distance(ours, theirs.unflatten(0, means.shape[:2])) for ours, theirs in pairs]
        return torch.stack(distances).sum(0).mean(0)

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor:
        """Cross-entropy of classifying the orientation of each image, in nats, (); ln 4 at chance level."""
        flips = torch.randint(NUM_FLIPS, inputs.x.shape[:1], device=inputs.x.device)
        output: DiscriminatorOutput = self.discriminator(apply_flips(inputs.x.detach(), flips))
        return cross_entropy(output.logits, flips)


def apply_flips(images: Tensor, flips: Tensor) -> Tensor:
    """Images (B, C, H, W), each in one of four orientations; flips: (B,), from 0 to 3."""
    flips = flips.view(-1, 1, 1, 1)
    images = torch.where(flips % 2 == 1, images.flip(-1), images)
    return torch.where(flips >= 2, images.flip(-2), images)


def feature_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of unit-norm features (*batch, channels, h, w), mean over positions: (*batch), from 0 to 4."""
    return (unit_norm_features(a) - unit_norm_features(b)).square().sum(-3).mean((-1, -2))


def unit_norm_features(features: Tensor) -> Tensor:
    """Features of unit norm at each position, float32; the gradient is finite where all are 0."""
    features = features.float()
    return features * (features.square().sum(-3, keepdim=True) + TINY).rsqrt()
