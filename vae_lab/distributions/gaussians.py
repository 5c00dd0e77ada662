"""Gaussians: bounded scales, Cholesky factors, mixtures, and the KLs between full and diagonal covariances."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    kl_divergence,
)
from torch.distributions.kl import register_kl

from vae_lab.core import EMPTY_SHAPE, SampleShape

LOGVAR_LIMIT = 20.0  # standard deviations between 0.000045 and 22,000; close to the identity down to 0.01


def bounded_scale(logvar: Tensor) -> Tensor:
    """Standard deviation of a log variance, smoothly bounded, with a gradient everywhere."""
    return torch.exp(LOGVAR_LIMIT / 2 * torch.tanh(logvar / LOGVAR_LIMIT))  # half of the bounded log variance


def logvar_for_scale(scale: Tensor) -> Tensor:
    """Inverse of `bounded_scale` at `scale`, or at the nearest value within its bounds."""
    return LOGVAR_LIMIT * torch.atanh((2 * scale.log() / LOGVAR_LIMIT).clamp(-0.999, 0.999))


def scale_tril(logvar: Tensor, below: Tensor) -> Tensor:
    """Cholesky factor, (*batch, D, D): bounded scales on its diagonal, `below` under it.

    logvar: (*batch, D). below: (*batch, D (D - 1) / 2), row by row.
    """
    factor = torch.diag_embed(bounded_scale(logvar))
    size = logvar.shape[-1]
    rows, columns = torch.tril_indices(size, size, -1, device=logvar.device)
    factor[..., rows, columns] = below
    return factor


def diagonal_normal(mean: Tensor, scale: Tensor, event_dims: int | None = None) -> Independent[Distribution]:
    """Diagonal Gaussian of mean and scale, any shape; all dimensions but the first are the event, or the last few."""
    normal = Normal(mean, scale, validate_args=False)
    return Independent(normal, mean.dim() - 1 if event_dims is None else event_dims, validate_args=False)


def as_diagonal_normal(distribution: Distribution) -> Normal | None:
    """The univariate Normals of a diagonal Gaussian; None for any other distribution."""
    base = distribution.base_dist if isinstance(distribution, Independent) else None
    return base if isinstance(base, Normal) else None


class FullNormal(MultivariateNormal):
    """MultivariateNormal whose sampling, a matrix product, keeps its precision under autocast."""

    def rsample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        with torch.autocast(self.loc.device.type, enabled=False):
            sample: Tensor = super().rsample(torch.Size(sample_shape))
        return sample


@register_kl(MultivariateNormal, Independent)  # type: ignore[untyped-decorator]
def _full_to_diagonal(q: MultivariateNormal, p: Independent[Distribution]) -> Tensor:
    mean, scale = _mean_and_scale(p)
    factor = q._unbroadcasted_scale_tril
    variances = (factor.square().sum(-1) + (q.loc - mean).square()) / scale.square()
    log_ratios = scale.log() - factor.diagonal(dim1=-2, dim2=-1).log()
    return (0.5 * (variances - 1) + log_ratios).sum(-1)


@register_kl(Independent, MultivariateNormal)  # type: ignore[untyped-decorator]
def _diagonal_to_full(q: Independent[Distribution], p: MultivariateNormal) -> Tensor:
    mean, scale = _mean_and_scale(q)
    return kl_divergence(MultivariateNormal(mean, scale_tril=torch.diag_embed(scale), validate_args=False), p)


def _mean_and_scale(distribution: Independent[Distribution]) -> tuple[Tensor, Tensor]:
    """NotImplementedError: not a diagonal Gaussian over vectors."""
    base = as_diagonal_normal(distribution)
    if base is None or len(distribution.event_shape) != 1:
        raise NotImplementedError
    return base.loc, base.scale


def soft_clamp(values: Tensor, limit: float) -> Tensor:
    """Values bounded to (-limit, limit), with a gradient far beyond it; the identity near 0."""
    return limit * torch.tanh(values / limit)


def inverse_soft_clamp(value: float, limit: float) -> float:
    """Inverse of `soft_clamp`."""
    return limit * math.atanh(value / limit)


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
