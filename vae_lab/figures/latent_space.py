"""Latents of a model with a single layer of them: posteriors of the images, prior samples, decoding.

Latents are flat here, (..., D) on the CPU, whether the model's are vectors or maps. Random numbers are seeded where
they are used, so that a picture depends neither on other pictures nor on the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.core import Latent
from vae_lab.distributions.gaussians import as_diagonal_normal
from vae_lab.models.base import point_estimate
from vae_lab.models.vae import VAE
from vae_lab.objectives.bounds import kl_per_dimension

CHUNK = 256  # images encoded or decoded at once: activations of 128x128 maps are large
NUM_STD_SAMPLES = 64  # samples to estimate a standard deviation
NUM_PRIOR_SAMPLES = 4096  # samples to estimate a density


class PosteriorSummary(NamedTuple):
    """Statistics of q(z|x) for every image."""

    centre: Tensor  # (N, D): the mode; the mean of some samples where no mode is known
    sample: Tensor  # (N, D)
    kl: Tensor | None  # (D,), mean over the images; None if it is not a sum over dimensions


@dataclass(frozen=True)
class LatentSpace:
    """Latents of a model for images x (N, C, H, W). y: their labels, for a conditional model."""

    model: VAE
    x: Tensor
    y: Tensor | None = None
    seed: int = 0
    validation_kl: Tensor | None = None  # (D,), from the last validation

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent: (D,), or (F, h, w) with D = F h w."""
        return self.model.latent_shape

    @property
    def size(self) -> int:
        """Number of latent dimensions, D."""
        return math.prod(self.shape)

    @cached_property
    def latents(self) -> PosteriorSummary:
        torch.manual_seed(self.seed)
        points, kls = [], []
        for q, prior in self._posteriors():
            sample = q.sample()
            points.append(self._flat(torch.stack([point_estimate(q), sample])))
            kls.append(kl_per_dimension(Latent(sample, q, prior)))
        centres, samples = torch.cat(points, 1)
        known = [self._flat(kl) for kl in kls if kl is not None]
        return PosteriorSummary(centres, samples, torch.cat(known).mean(0).nan_to_num() if known else None)

    def _posteriors(self) -> Iterator[tuple[Distribution, Distribution]]:
        """q(z|x) and p(z) of the images, in chunks."""
        for x, y in chunks(self.model.device, self.x, self.y):
            yield self.model.encode(x, y), self.model.prior_distribution(y)

    def _flat(self, z: Tensor) -> Tensor:
        """(..., *shape) to (..., D); finite, so that diverged weights do not end a picture."""
        return z.flatten(-len(self.shape)).float().cpu().nan_to_num()

    @property
    def scale(self) -> Tensor:
        """Standard deviation of q(z|x) for every image, (N, D); from samples where the family has none."""
        torch.manual_seed(self.seed)
        scales = []
        for q, _ in self._posteriors():
            try:
                scales.append(self._flat(q.stddev))
            except NotImplementedError:
                scales.append(self._flat(q.sample((NUM_STD_SAMPLES,)).std(0)))
        return torch.cat(scales)

    @property
    def kl(self) -> Tensor | None:
        """KL in nats of each feature, summed over positions, (F,): from the last validation, else from the images.

        None if it is not a sum over dimensions.
        """
        known = self.latents.kl if self.validation_kl is None else self.validation_kl.float().cpu().nan_to_num()
        return None if known is None else known.reshape(self.shape[0], -1).sum(1)

    @property
    def activity(self) -> str:
        """Adjective for the first dimensions of `dims_by_activity`."""
        return "varied" if self.kl is None else "active"

    @property
    def dims_by_activity(self) -> list[int]:
        """Dimensions of a vector latent, most active first: by KL, or without one by the variance of the centres."""
        activity = self.latents.centre.var(0, correction=0) if self.kl is None else self.kl
        return [int(dim) for dim in activity.argsort(descending=True, stable=True)]

    @cached_property
    def prior_is_standard_normal(self) -> bool:
        """Whether p(z) is N(0, I) for all labels of the images."""
        prior = as_diagonal_normal(self.model.prior_distribution(self.y))
        return prior is not None and bool((prior.loc == 0).all() and (prior.scale == 1).all())

    @cached_property
    def location(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (D,) each, of the latents to decode: of N(0, I) if that is the prior, else of
        q(z), the posterior averaged over the images.
        """
        if self.prior_is_standard_normal:
            return torch.zeros(self.size), torch.ones(self.size)
        sample = self.latents.sample
        return sample.mean(0), sample.std(0, correction=0)

    def prior_sample(self) -> Tensor:
        """Latents from the prior, (about 4,000, D); for a conditional model, given the labels of the images."""
        torch.manual_seed(self.seed)
        y = None if self.y is None else self.y.repeat(math.ceil(NUM_PRIOR_SAMPLES / len(self.y)))
        return self._flat(self.model.sample_latents(NUM_PRIOR_SAMPLES if y is None else len(y), y))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Mean of p(x|z), float (..., C, H, W) on the CPU. z: (..., D); y: labels that expand to (...)."""
        batch = z.shape[:-1]
        labels = None if y is None else y.expand(batch).reshape(-1)
        parts = chunks(self.model.device, z.reshape(-1, *self.shape), labels)
        images = torch.cat([self.model.decode(*part).mean.float().cpu() for part in parts])
        return images.reshape(*batch, *images.shape[1:])


def chunks(device: torch.device, x: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images or latents and their labels, at most CHUNK at once, on the device."""
    for first in range(0, len(x), CHUNK):
        labels = None if y is None else y[first : first + CHUNK].to(device)
        yield x[first : first + CHUNK].to(device), labels
