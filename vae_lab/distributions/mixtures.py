"""Mixtures of a few hundred distributions of latents, cheap enough for every training step."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily, Normal

from vae_lab.core import EMPTY_SHAPE, SampleShape
from vae_lab.distributions.gaussians import as_diagonal_normal


def mixture(logits: Tensor, components: Distribution) -> MixtureSameFamily:
    """sum_k softmax(logits)_k components_k, batch (). logits: (K,); components: batch (K,)."""
    weights = Categorical(logits=logits, validate_args=False)
    if as_diagonal_normal(components) is not None:
        return DiagonalMixture(weights, components, validate_args=False)
    return MixtureSameFamily(weights, components, validate_args=False)


class DiagonalMixture(MixtureSameFamily):
    """MixtureSameFamily of K diagonal Gaussians, without a tensor of latents x components x dimensions.

    500 components of 40 dimensions take a tenth of the time in training, a fiftieth where many latents are evaluated.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, (*batch) for value (*batch, *event).

        All squared distances are one matrix product: z^2 / s^2 - 2 z m / s^2 + m^2 / s^2. In float64, since the terms
        are large for a small scale, and cancel.
        """
        mean, scale = (t.double().flatten(1) for t in (self._normal.loc, self._normal.scale))
        z, precision = value.double().flatten(value.dim() - self._event_ndims), scale.square().reciprocal()
        by_powers = torch.cat((precision, -2 * precision * mean), 1)  # (K, 2 D)
        distances = torch.cat((z.square(), z), -1) @ by_powers.mT + (precision * mean.square()).sum(1)
        constants = scale.log().sum(1) + 0.5 * math.log(2 * math.pi) * scale.shape[1]
        log_weights = self.mixture_distribution.logits.double().log_softmax(-1)
        return (log_weights - constants - 0.5 * distances).logsumexp(-1).to(value.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        """(*sample_shape, *event); only the chosen component of each is sampled."""
        chosen = self.mixture_distribution.sample(torch.Size(sample_shape))
        mean, scale = self._normal.loc[chosen], self._normal.scale[chosen]
        return mean + scale * torch.randn_like(mean)

    @property
    def _normal(self) -> Normal:
        base: Normal = self.component_distribution.base_dist  # type: ignore[attr-defined]
        return base
