"""Posteriors and what a regularizer is shown of them."""

import torch
from torch.distributions import Independent, Normal

from vae_lab.core import ImageSpec, Latent, LatentSpec, RegularizerInputs, Trace, TrainingSpec
from vae_lab.priors import StandardNormal

IMAGE = ImageSpec(1, 2, 2)


def vectors(*shape):
    return LatentSpec("vector", shape, IMAGE)


def standard_normal(*shape):
    return StandardNormal(vectors(*shape))()


def spec(*latents, num_images=100):
    return TrainingSpec(IMAGE, latents or (vectors(3),), num_images)


def gaussian(mean, scale):
    return Independent(Normal(mean, torch.as_tensor(scale).to(mean).expand_as(mean)), mean.dim() - 1)


def regularizer_inputs(posterior, num_samples=2, layers=()):
    """What a regularizer is shown of q(z|x), batch (B,), with p(z) = N(0, I)."""
    z = posterior.rsample((num_samples,))
    likelihood = Independent(Normal(torch.zeros(num_samples, z.shape[1], 1, 2, 2), 1.0), 3)
    trace = Trace(likelihood, (Latent(z, posterior, standard_normal(*posterior.event_shape)),))
    return RegularizerInputs(trace, torch.zeros(z.shape[1], 1, 2, 2), lambda z: likelihood, layers)
