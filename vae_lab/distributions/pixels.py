"""Distributions of pixels: Bernoullis of one and of continuous values, a Normal of correlated channels, logistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Bernoulli, Independent, Normal
from torch.nn.functional import logsigmoid, softplus

from vae_lab.core import EMPTY_SHAPE, SampleShape
from vae_lab.distributions.base import UnvalidatedDistribution


class FastBernoulli(Bernoulli):
    """torch's Bernoulli of logits; `log_prob` takes half the time on a CPU, where torch's logarithm is slow.

    log p(x) = x l - max(l, 0) + log max(s, 1 - s) with s = sigmoid(l), and its gradient x - s reuses s.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self.logits.device.type != "cpu" or value.requires_grad:
            return cast("Tensor", super().log_prob(value))  # type: ignore[no-untyped-call]
        return cast("Tensor", _BernoulliLogProb.apply(self.logits, value))


class _BernoulliLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor) -> Tensor:
        p = logits.sigmoid()
        ctx.save_for_backward(p, value)
        return torch.addcmul(torch.maximum(p, 1 - p).log_(), logits, value).sub_(logits.clamp(min=0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        p, value = ctx.saved_tensors
        return (gradient * (value - p)).sum_to_size(p.shape), None


class ContinuousBernoulli(UnvalidatedDistribution):
    """Density proportional to exp(logits x) on [0, 1]. Loaiza-Ganem & Cunningham 2019, arXiv:1907.06845.

    torch's own clamps the probability and integrates to 0.80 at logit 20 and 0.32 at 50; this one is exact
    for every logit. logits: any shape, the batch shape.
    """

    has_rsample = True

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        super().__init__(logits.shape, ())

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, the batch shape."""
        return self.logits * value + self._log_normalizer()

    def _split(self) -> tuple[Tensor, Tensor]:
        """Where the closed forms lose digits (near 0), and logits that are safe elsewhere."""
        near = self.logits.abs() < 1e-2
        return near, torch.where(near, torch.ones_like(self.logits), self.logits)

    def _log_normalizer(self) -> Tensor:
        """log(l / (e^l - 1))."""
        near, safe = self._split()
        size = safe.abs()
        far = size.log() - safe.clamp(min=0) - (-torch.expm1(-size)).log()
        return torch.where(near, -self.logits / 2 - self.logits**2 / 24, far)

    @property
    def mean(self) -> Tensor:
        """1 / (1 - e^-l) - 1 / l."""
        near, safe = self._split()
        size = safe.abs()
        favoured = 1 / -torch.expm1(-size) - 1 / size  # for a positive logit; a negative one mirrors it
        return torch.where(near, 0.5 + self.logits / 12, torch.where(safe > 0, favoured, 1 - favoured))

    def rsample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        """By the inverse CDF, on the side where exp does not overflow."""
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        near, safe = self._split()
        size = safe.abs()
        # log(u + (1 - u) e^-|l|) / |l| is at most 0: the distance from the favoured end of [0, 1].
        distance = (-torch.log(u + (1 - u) * torch.exp(-size)) / size).clamp(max=1)
        series = u + u * (1 - u) * (self.logits / 2 + (1 - 2 * u) * self.logits**2 / 6)
        return torch.where(near, series, torch.where(safe > 0, 1 - distance, distance))


class ChannelNormal(UnvalidatedDistribution):
    """A Normal over images whose pixels are independent and share one covariance of their channels.

    With covariance = L D L^T, L unit lower triangular, the residuals L^-1 (x - mean) are independent of variances D and
    have the same density. Channel by channel, so that autocast rounds nothing and no library call keeps a CUDA graph
    from being recorded. mean: (*batch, C, H, W). covariance: (C, C), positive definite.
    """

    has_rsample = True

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self._mean = mean
        columns, variances, rest = [], [], covariance
        for i in range(len(covariance)):
            variances.append(rest[i, i])
            columns.append(rest[:, i] / rest[i, i])
            rest = rest - columns[i].unsqueeze(-1) * rest[i]
        self._lower = torch.stack(columns, -1).tril(-1)[..., None, None]  # L - I, (C, C, 1, 1)
        scale = torch.stack(variances).sqrt()[:, None, None]
        self._residuals = Independent(Normal(mean.new_zeros(()), scale.expand(mean.shape), validate_args=False), 3)
        super().__init__(mean.shape[:-3], mean.shape[-3:])

    @property
    def mean(self) -> Tensor:
        return self._mean

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, the batch shape."""
        residual = value - self._mean
        for i in range(residual.shape[-3] - 1):
            residual = torch.addcmul(residual, self._lower[:, i], residual[..., i : i + 1, :, :], value=-1)
        log_prob: Tensor = self._residuals.log_prob(residual)
        return log_prob

    def rsample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        noise = self._residuals.rsample(torch.Size(sample_shape))
        for i in reversed(range(noise.shape[-3] - 1)):
            noise = torch.addcmul(noise, self._lower[:, i], noise[..., i : i + 1, :, :])
        return self._mean + noise


class DiscretizedLogisticMixture(UnvalidatedDistribution):
    """A mixture of logistics over `levels` values of each pixel, autoregressive over channels.

    Salimans et al. 2017, arXiv:1701.05517. A probability mass function over images whose values are
    k / (levels - 1); log_prob is exact at the edges and for any scale (no density approximation).

    logits: (*batch, M, H, W). means, log_scales: (*batch, M, C, H, W), means in the units of 2 x - 1.
    coefficients: (*batch, M, C (C - 1) / 2, H, W), weights of the preceding channels in a channel's mean.
    """

    def __init__(
        self, logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor, levels: int = 256
    ) -> None:
        self.log_weights = logits.log_softmax(-3)
        self.means, self.log_scales, self.coefficients = means, log_scales, coefficients
        self.levels = levels
        super().__init__(means.shape[:-4], means.shape[-3:])

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, the batch shape. value: (*, C, H, W) in [0, 1]."""
        x = (2 * value - 1).unsqueeze(-4)
        half_bin, inverse_scale = 1 / (self.levels - 1), torch.exp(-self.log_scales)
        centered = x - self._carry_over(self.means, lambda c, _: x[..., c, :, :])[0]
        upper, lower = (centered + half_bin) * inverse_scale, (centered - half_bin) * inverse_scale
        # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - e^(l-u)); the outer bins reach to infinity.
        width = torch.log(-torch.expm1(-2 * half_bin * inverse_scale))
        first, last = x < half_bin - 1, x > 1 - half_bin
        mass = torch.where(last, 0.0, logsigmoid(upper)) + torch.where(first, 0.0, logsigmoid(-lower))
        mass = mass + torch.where(first | last, 0.0, width)
        return (self.log_weights + mass.sum(-3)).logsumexp(-3).sum((-2, -1))

    def _carry_over(self, values: Tensor, outcome: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Add to each channel its coefficients times the outcomes of the channels before it; both results.

        outcome: of a channel's number and value, what the channels after it depend on.
        """
        channels: list[Tensor] = []
        outcomes: list[Tensor] = []
        used = 0
        for c in range(values.shape[-3]):
            value = values[..., c, :, :]
            for before in outcomes:
                value = value + self.coefficients[..., used, :, :] * before
                used += 1
            channels.append(value)
            outcomes.append(outcome(c, value))
        return tuple(torch.stack(torch.broadcast_tensors(*each), -3) for each in (channels, outcomes))  # type: ignore[return-value]

    def _rounded(self, value: Tensor) -> Tensor:
        steps = (self.levels - 1) / 2
        return ((value.clamp(-1, 1) + 1) * steps).round() / steps - 1

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture, (*batch, C, H, W) in [0, 1], differentiable in every parameter.

        A component's mean is that of a logistic clipped to the range of values, half a level from that of its levels at
        most, where a channel depends on none before it; else it is that given the mean of the channels before it.
        """
        scales = torch.exp(self.log_scales)

        def clipped(c: int, location: Tensor) -> Tensor:
            scale = scales[..., c, :, :]
            return scale * (softplus((location + 1) / scale) - softplus((location - 1) / scale)) - 1

        expected = self._carry_over(self.means, clipped)[1]
        mixed = (self.log_weights.exp().unsqueeze(-3) * expected).sum(-4)
        return (mixed + 1) / 2

    def sample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        """Sample a component per pixel, then its channels in turn, rounded to a level."""
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            gumbel = -torch.log(-torch.log(self._uniform(shape + self.log_weights.shape)))
            chosen = (self.log_weights + gumbel).argmax(-3, keepdim=True)
            u = self._uniform(shape + self.means.shape)
            logistic = torch.exp(self.log_scales) * (torch.log(u) - torch.log1p(-u))
            values = self._carry_over(self.means + logistic, lambda _, value: self._rounded(value))[1]
            index = chosen.unsqueeze(-3).expand(*values.shape[:-4], 1, *values.shape[-3:])
            return (values.gather(-4, index).squeeze(-4) + 1) / 2

    def _uniform(self, shape: torch.Size) -> Tensor:
        tiny = torch.finfo(self.means.dtype).eps
        return torch.rand(shape, dtype=self.means.dtype, device=self.means.device).clamp(tiny, 1 - tiny)
