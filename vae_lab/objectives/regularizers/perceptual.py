"""Perceptual distance in the features of a network trained alongside the model; nothing is downloaded."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vae_lab.core import RegularizerInputs, TrainingSpec
from vae_lab.objectives.regularizers.base import AdversarialRegularizer
from vae_lab.objectives.regularizers.discriminators import DiscriminatorOutput, ImageDiscriminator, apply_frozen

NUM_FLIPS = 4  # orientations of an image: original, flipped left to right, upside down, both (a half turn)
TINY = 1e-8  # added to squared norms: a finite gradient at zero features


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
        self,
        spec: TrainingSpec,
        weight: float,
        discriminator_lr: float = 1e-3,
        width: int = 32,
        max_width: int = 256,
    ) -> None:
        super().__init__("perceptual", weight, discriminator_lr, (width, max_width))
        self.discriminator = ImageDiscriminator(spec.image.shape, NUM_FLIPS, width, max_width)

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """The distance, (B,), averaged over samples."""
        means = inputs.trace.likelihood.mean  # (S, B, C, H, W)
        of_x: DiscriminatorOutput = apply_frozen(self.discriminator, inputs.x)
        of_means: DiscriminatorOutput = apply_frozen(self.discriminator, means.flatten(0, 1))
        pairs = zip(of_x.features, of_means.features, strict=True)
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
