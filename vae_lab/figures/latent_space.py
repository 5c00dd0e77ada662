"""The latents of a model with one layer of them: where the images are, where the prior is, what decodes to what.

Latents are flat here, (..., D) on the CPU, whether the model's are vectors or maps. What draws random numbers seeds
them first, so that a picture is the same whichever others are drawn, and by whom.
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
from vae_lab.figures.examples import SingleLayerModel
from vae_lab.models.base import point_estimate
from vae_lab.objectives.bounds import kl_per_dimension

CHUNK = 256  # images encoded or decoded at once: activations of 128x128 maps are large
NUM_STD_SAMPLES = 64  # samples that tell a standard deviation
NUM_PRIOR_SAMPLES = 4096  # samples that tell a density


class PosteriorSummary(NamedTuple):
    """What q(z|x) is of every image."""

    centre: Tensor  # (N, D): its mode; the mean of some samples where none is known
    sample: Tensor  # (N, D)
    kl: Tensor | None  # (D,), mean over the images; None where it is no sum over dimensions


class MeanAndScale(NamedTuple):
    """Where latents are found, (D,) each."""

    mean: Tensor
    scale: Tensor


@dataclass(frozen=True)
class LatentSpace:
    """A model's latents, and the images x (N, C, H, W) in them; y: their labels, of a conditional model."""

    model: SingleLayerModel
    device: torch.device
    x: Tensor
    y: Tensor | None = None
    seed: int = 0
    known_kl: Tensor | None = None  # (D,), of the last validation

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one latent: (D,), or (F, h, w) with D = F h w."""
        return self.model.latent_shape

    @property
    def size(self) -> int:
        """D."""
        return math.prod(self.shape)

    @cached_property
    def latents(self) -> PosteriorSummary:
        """Where the images are."""
        torch.manual_seed(self.seed)
        points, kls = [torch.zeros(2, 0, self.size)], []
        for q, prior in self._posteriors():
            sample = q.sample()
            points.append(torch.stack([point_estimate(q), sample]).flatten(2).float().cpu())
            kl = kl_per_dimension(Latent(sample, q, prior))
            kls += [] if kl is None else [kl.flatten(1).float().cpu()]
        centres, samples = torch.cat(points, 1).nan_to_num()
        return PosteriorSummary(centres, samples, torch.cat(kls).mean(0).nan_to_num() if kls else None)

    def _posteriors(self) -> Iterator[tuple[Distribution, Distribution]]:
        """q(z|x) and p(z) of the images, some at a time."""
        for first in range(0, len(self.x), CHUNK):
            x = self.x[first : first + CHUNK].to(self.device)
            y = None if self.y is None else self.y[first : first + CHUNK].to(self.device)
            yield self.model.encode(x, y), self.model.prior_distribution(y)

    @cached_property
    def scale(self) -> Tensor:
        """The standard deviation of q(z|x) of every image, (N, D)."""
        torch.manual_seed(self.seed)
        scales = [standard_deviation(q).flatten(1).float().cpu() for q, _ in self._posteriors()]
        return torch.cat([torch.zeros(0, self.size), *scales]).nan_to_num()

    @property
    def kl(self) -> Tensor | None:
        """KL in nats of each feature, over all its places, (F,): of the last validation, else of the images.

        None where it is no sum over dimensions, or nothing was seen.
        """
        known = self.latents.kl if self.known_kl is None else self.known_kl.detach().float().cpu().nan_to_num()
        return None if known is None else known.reshape(self.shape[0], -1).sum(1)

    @property
    def activity(self) -> str:
        """What the dimensions are sorted by, as a word for them."""
        return "varied" if self.kl is None else "active"

    @property
    def by_activity(self) -> list[int]:
        """The dimensions of a vector, first those that say most of an image: by their KL, else by how they vary."""
        activity = self.kl
        if activity is None:
            activity = (self.latents.centre - self.latents.centre.mean(0)).square().sum(0)
        return [int(dim) for dim in activity.argsort(descending=True, stable=True)]

    @cached_property
    def prior_is_standard_normal(self) -> bool:
        """Whether p(z) is N(0, I), whatever the images' labels."""
        y = self.y
        if y is not None:
            y = (y if len(y) else torch.zeros(1, dtype=torch.int64)).to(self.device)
        prior = as_diagonal_normal(self.model.prior_distribution(y))
        return prior is not None and bool((prior.loc == 0).all() and (prior.scale == 1).all())

    @cached_property
    def location(self) -> MeanAndScale:
        """Where to look: over N(0, I) if that is the prior; else over q(z), the posterior averaged over the images."""
        if self.prior_is_standard_normal:
            return MeanAndScale(torch.zeros(self.size), torch.ones(self.size))
        sample = self.latents.sample
        return MeanAndScale(sample.mean(0), sample.std(0, correction=0))

    def prior_sample(self) -> Tensor:
        """Latents from the prior, (about 4,000, D); where it depends on labels, of the images' own."""
        torch.manual_seed(self.seed)
        y = None if self.y is None else self.y.repeat(math.ceil(NUM_PRIOR_SAMPLES / len(self.y)))
        count = NUM_PRIOR_SAMPLES if y is None else len(y)
        return (
            self.model.sample_latents(count, y if y is None else y.to(self.device))
            .flatten(1)
            .float()
            .cpu()
            .nan_to_num()
        )

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """The mean of p(x|z), float (..., C, H, W) on the CPU. z: (..., D); y: labels, (...) or what expands to it."""
        batch = z.shape[:-1]
        zs = torch.split(z.reshape(-1, *self.shape), CHUNK)
        ys = [None] * len(zs) if y is None else torch.split(y.expand(batch).reshape(-1), CHUNK)
        images = torch.cat([self.likelihood(*part).mean.float().cpu() for part in zip(zs, ys, strict=True)])
        return images.reshape(*batch, *images.shape[1:])

    def likelihood(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """p(x|z), batch (N,). z: (N, *shape) or flat; y: labels (N,)."""
        z = z.reshape(-1, *self.shape).to(self.device)
        return self.model.decode(z, y if y is None else y.to(self.device))


def standard_deviation(q: Distribution) -> Tensor:
    """Of each dimension, (B, *event); of some samples where a family does not know it."""
    try:
        return q.stddev
    except NotImplementedError:
        return q.sample((NUM_STD_SAMPLES,)).std(0)
