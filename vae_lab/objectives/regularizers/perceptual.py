"""Perceptual distance in the features of a network trained here, beside the model; nothing is downloaded."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vae_lab.core import RegularizerInputs, TrainingSpec
from vae_lab.objectives.regularizers.discriminators import (
    DiscriminatorOutput,
    ImageDiscriminator,
    apply_frozen,
    require_discriminator,
)

NUM_FLIPS = 4  # ways to show an image: as it is, flipped left to right, upside down, both (a half turn)
TINY = 1e-8  # squared length below which features have no direction


class Perceptual(nn.Module):
    """Distance of reconstructions from their images in what a small convolutional network sees in them.

    The deep feature consistent VAE (Hou et al. 2017, arXiv:1610.00291), beside the pixels' likelihood rather than in
    its place. The network learns from the training images alone, to tell which of four ways one is shown: after
    Gidaris et al. 2018, arXiv:1803.07728, with flips for the quarter turns, so that any shape of image will do. The
    distance is that of Zhang et al. 2018, arXiv:1801.03924, eq. 1, all channels weighted 1: features of length 1 at
    each place, squared distance, averaged over places, summed over the maps (from 0 to 4 each).

    Reconstructions are the likelihood's means, of binary images too: an expectation is what a distance asks for.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        weight: float,
        discriminator_lr: float = 1e-3,
        width: int = 32,
        max_width: int = 256,
    ) -> None:
        super().__init__()
        require_discriminator("perceptual", weight, discriminator_lr, (width, max_width))
        self.weight, self.discriminator_lr = weight, discriminator_lr
        self.discriminator = ImageDiscriminator(spec.image.shape, NUM_FLIPS, width, max_width)

    def forward(self, inputs: RegularizerInputs) -> Tensor:
        """The distance, (B,), averaged over the samples."""
        means = inputs.trace.likelihood.mean  # (S, B, C, H, W)
        of_x: DiscriminatorOutput = apply_frozen(self.discriminator, inputs.x)
        of_means: DiscriminatorOutput = apply_frozen(self.discriminator, means.flatten(0, 1))
        pairs = zip(of_x.features, of_means.features, strict=True)
        distances = [feature_distance(ours, theirs.unflatten(0, means.shape[:2])) for ours, theirs in pairs]
        return torch.stack(distances).sum(0).mean(0)

    def discriminator_loss(self, inputs: RegularizerInputs) -> Tensor:
        """Cross-entropy of telling how each image is shown, in nats, (); ln 4 for a network that cannot."""
        flips = torch.randint(NUM_FLIPS, inputs.x.shape[:1], device=inputs.x.device)
        judged: DiscriminatorOutput = self.discriminator(flipped(inputs.x.detach(), flips))
        return cross_entropy(judged.logits, flips)


def flipped(images: Tensor, flips: Tensor) -> Tensor:
    """Images (B, C, H, W), each shown in one of four ways, numbers (B,) from 0 to 3."""
    flips = flips.view(-1, 1, 1, 1)
    images = torch.where(flips % 2 == 1, images.flip(-1), images)
    return torch.where(flips >= 2, images.flip(-2), images)


def feature_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of directions, features (*batch, channels, h, w) averaged over places: (*batch), from 0 to 4."""
    return (directions(a) - directions(b)).square().sum(-3).mean((-1, -2))


def directions(features: Tensor) -> Tensor:
    """Features of length 1 at each place, float32; a gradient even where all are 0."""
    features = features.float()
    return features * (features.square().sum(-3, keepdim=True) + TINY).rsqrt()
