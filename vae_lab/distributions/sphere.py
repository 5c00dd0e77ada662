"""Distributions on the unit sphere S^{D-1} in R^D: uniform, and von Mises-Fisher with exact sample gradients.

And what its density needs: modified Bessel functions of the first kind, I_v(x), of any real order v >= 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import Tensor
from torch.distributions.kl import register_kl
from torch.nn.functional import normalize

from vae_lab.core import EMPTY_SHAPE, SampleShape
from vae_lab.distributions.base import UnvalidatedDistribution

NUM_PROPOSALS = 24  # each is accepted with probability 0.65 or more: all are rejected once in 10^11 samples
NUM_NODES = 48
# From this order on, this many terms of Debye's expansion are exact to float64 rounding for every x > 0.
MIN_EXPANSION_ORDER = 15
NUM_TERMS = 10


def log_area(dim: int) -> float:
    """Log surface area of the unit sphere in R^dim."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


class SphericalUniform(UnvalidatedDistribution):
    """Uniform density on S^{D-1}. dim: D. like: a tensor of the dtype and device to use."""

    def __init__(self, dim: int, batch_shape: SampleShape, like: Tensor) -> None:
        self._like = like
        super().__init__(batch_shape, (dim,))

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -log_area(value.shape[-1]))

    def sample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return normalize(torch.randn(shape, dtype=self._like.dtype, device=self._like.device), dim=-1)


class VonMisesFisher(UnvalidatedDistribution):
    """Density proportional to exp(concentration direction.z) on S^{D-1}. Davidson et al. 2018, arXiv:1804.00891.

    direction: (*batch, D) of length 1, D >= 2. concentration: (*batch), above 0.

    Bessel functions and angles are computed in float64. Sampling reads nothing back from the device, and its cost
    depends on shapes only. Sample gradients are unbiased: that of the accepted sample, where Davidson et al. take that
    of the accepted proposal, which lacks a correction term; see `rsample`. They have no second derivative.
    """

    has_rsample = True

    def __init__(self, direction: Tensor, concentration: Tensor) -> None:
        self.direction, self.concentration = direction, concentration
        super().__init__(concentration.shape, direction.shape[-1:])
        # log(e^-k I_{D/2-1}(k)), and the length of the mean.
        self._log_bessel, self._mean_length = log_bessel_and_ratio(direction.shape[-1] / 2 - 1, concentration)

    @property
    def _log_peak(self) -> Tensor:
        """Log density at the direction, float64."""
        dim, k = self.event_shape[0], self.concentration.double()
        return (dim / 2 - 1) * k.log() - dim / 2 * math.log(2 * math.pi) - self._log_bessel

    def log_prob(self, value: Tensor) -> Tensor:
        """For unit vectors, direction.value - 1 is minus half the squared distance, which does not cancel."""
        distance = (value - self.direction).square().sum(-1)
        return self._log_peak.to(value.dtype) - 0.5 * self.concentration * distance

    @property
    def mean(self) -> Tensor:
        return self._mean_length.to(self.direction.dtype).unsqueeze(-1) * self.direction

    @property
    def mode(self) -> Tensor:
        return self.direction

    @property
    def variance(self) -> Tensor:
        along, across = (moment.to(self.direction.dtype).unsqueeze(-1) for moment in self._variances())
        return across + (along - across) * self.direction.square()

    def _variances(self) -> tuple[Tensor, Tensor]:
        """Variance along the direction, and along each of the D - 1 orthogonal to it; float64."""
        length = self._mean_length
        across = length / self.concentration.double()
        return (1 - length.square() - (self.event_shape[0] - 1) * across).clamp(min=0), across

    def entropy(self) -> Tensor:
        k = self.concentration.double()
        return (k * (1 - self._mean_length) - self._log_peak).to(self.concentration.dtype)

    def rsample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        """(*sample_shape, *batch, D).

        Pathwise gradient. When the direction rotates, the sample rotates with it, by the smallest rotation. When the
        concentration grows, the angle of the sample to the direction changes such that the CDF of the angle stays
        constant at the sample (Figurnov et al. 2018, arXiv:1805.08498).
        """
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            angle = _sample_angle(shape[-1], self.concentration.double().expand(shape[:-1]))
            cos, sin = (f(angle).to(self.direction.dtype).unsqueeze(-1) for f in (torch.cos, torch.sin))
            noise = torch.randn(shape, dtype=self.direction.dtype, device=self.direction.device)
            across = normalize(noise - (noise * self.direction).sum(-1, keepdim=True) * self.direction, dim=-1)
            sample = cos * self.direction + sin * across
            moves = self.concentration.requires_grad or self.direction.requires_grad
        if not (moves and torch.is_grad_enabled()):
            return sample
        with torch.no_grad():
            speed = _angular_speed(shape[-1], angle, self.concentration.double(), self._mean_length)
            velocity = speed.to(sample.dtype).unsqueeze(-1) * (cos * across - sin * self.direction)
        turned = self.direction * cos - self.direction.detach() * (self.direction * sample).sum(-1, keepdim=True)
        path = turned + velocity * self.concentration.unsqueeze(-1)
        return sample + (path - path.detach())  # adds the gradient, not the value, of path


def _sample_angle(dim: int, k: Tensor) -> Tensor:
    """Angles between samples and their directions, in (0, pi), the shape of k.

    Rejection sampling by Wood 1994, "Simulation of the von Mises Fisher distribution", algorithm VM*, which corrects
    Ulrich 1984. Takes the first accepted of a fixed number of proposals, rather than proposing until one is accepted.
    """
    k = k.unsqueeze(-1)
    root = torch.hypot(2 * k, torch.full_like(k, dim - 1))
    a, b = (dim - 1 + 2 * k + root) / 4, (dim - 1) / (2 * k + root)
    d = 4 * a * b / (1 + b) - (dim - 1) * math.log(dim - 1)
    shape = (*k.shape[:-1], NUM_PROPOSALS)
    beta = _symmetric_beta(dim, shape, k.device)
    below = 1 - (1 - b) * beta
    t = 2 * a * b / below
    accepted = (dim - 1) * t.log() - t + d >= torch.rand(shape, dtype=k.dtype, device=k.device).log()
    first = accepted.to(torch.uint8).argmax(-1, keepdim=True)
    half_distance = (b * beta / below).gather(-1, first).squeeze(-1)  # (1 - cos) / 2
    return (2 * torch.asin(half_distance.sqrt())).clamp(1e-9, math.pi - 1e-9)


def _symmetric_beta(dim: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Samples of Beta((dim - 1) / 2, (dim - 1) / 2), float64.

    Ulrich 1984, "Computer generation of distributions on the m-sphere", section 3.
    """
    u, v = torch.rand((2, *shape), dtype=torch.float64, device=device)
    radius = (1 - u ** (2 / (dim - 2))).sqrt() if dim > 2 else torch.ones_like(u)
    return 0.5 + 0.5 * radius * torch.cos(2 * math.pi * v)


def _angular_speed(dim: int, angle: Tensor, k: Tensor, mean_length: Tensor) -> Tensor:
    """d angle / d k at a constant value of the angle's CDF, the shape of `angle`; float64.

    Minus the integral of dp/dk from 0 to the angle, over p: the density p(f) ~ exp(k cos f) sin(f)^(D-2) has
    dp/dk = (cos f - mean length) p. Its integral from 0 to pi is 0: integrate on the side where it keeps its sign.
    """
    k, mean_length, angle = k.unsqueeze(-1), mean_length.unsqueeze(-1), angle.unsqueeze(-1)
    cos = angle.cos()
    inward = cos > mean_length  # integrate towards 0, else towards pi
    reach = 10 / (k * mean_length + dim - 2).sqrt()  # beyond it, p is less than 10^-9 of its value at the angle
    length = torch.minimum(torch.where(inward, angle, math.pi - angle), reach)
    nodes, weights = _quadrature(angle.device)
    f = angle + torch.where(inward, -length, length) * nodes
    log_p = k * (f.cos() - cos) + torch.xlogy(dim - 2, f.sin().clamp(min=0)) - torch.xlogy(dim - 2, angle.sin())
    integral = length.squeeze(-1) * (weights * (f.cos() - mean_length) * log_p.exp()).sum(-1)
    return torch.where(inward.squeeze(-1), -integral, integral)


def _quadrature(device: torch.device) -> tuple[Tensor, Tensor]:
    """Tanh-sinh nodes in [0, 1] and weights, exact for functions smooth inside. Created on the device."""
    step = 6 / (NUM_NODES - 1)
    t = torch.arange(NUM_NODES, dtype=torch.float64, device=device) * step - 3
    inner = math.pi / 2 * t.sinh()
    return torch.sigmoid(2 * inner), step * math.pi / 4 * t.cosh() / inner.cosh().square()


@register_kl(VonMisesFisher, SphericalUniform)  # type: ignore[untyped-decorator]
def _to_uniform(q: VonMisesFisher, p: SphericalUniform) -> Tensor:
    """KL(q || p), the batch shape: the log area of the sphere minus q's entropy."""
    k = q.concentration.double()
    divergence = q._log_peak - k * (1 - q._mean_length) + log_area(q.event_shape[0])
    return divergence.to(q.concentration.dtype)


def log_bessel_and_ratio(order: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """log(e^-x I_order(x)), and I_{order+1}(x) / I_order(x) in (0, 1); float64, the shape of x > 0.

    An expansion for large orders, uniform in x, then the recurrence I_{v-1} = (2v/x) I_v + I_{v+1}, stable downwards.
    The number of operations depends on the order only, nothing is read back from the device, and autograd can
    differentiate any number of times. DLMF 10.41.3, 10.29.1.
    """
    x = x.double()
    steps = max(0, math.ceil(MIN_EXPANSION_ORDER - order))
    log_value = _log_of_large_order(order + steps, x)
    ratio = torch.exp(_log_of_large_order(order + steps + 1, x) - log_value)
    for above in range(steps, 0, -1):
        ratio = 1 / (2 * (order + above) / x + ratio)
        log_value = log_value - ratio.log()
    return log_value, ratio


def _log_of_large_order(order: float, x: Tensor) -> Tensor:
    """log(e^-x I_order(x)) by Debye's expansion, without cancellation of large numbers."""
    root = torch.hypot(x, torch.full_like(x, order))
    p = order / root
    series = torch.zeros_like(x)
    for coefficient in reversed(_series(order)):
        series = series * p + coefficient
    exponent = order * p / (1 + x / root) + order * torch.log(x / (order + root))  # includes -x
    return exponent - 0.5 * torch.log(2 * math.pi * root) + series.log()


def _series(order: float) -> list[float]:
    """Coefficients in p of sum_k u_k(p) / order^k. DLMF 10.41.3."""
    total = [0.0] * (3 * NUM_TERMS + 1)
    for k, polynomial in enumerate(POLYNOMIALS):
        for power, coefficient in polynomial:
            total[power] += coefficient / order**k
    return total


def _polynomials() -> Iterator[list[tuple[int, float]]]:
    """Powers and coefficients of u_0, u_1, ..., computed exactly, then rounded."""
    u = [Fraction(1)]
    for _ in range(NUM_TERMS + 1):
        yield [(power, float(coefficient)) for power, coefficient in enumerate(u) if coefficient]
        u = _next(u)


def _next(u: list[Fraction]) -> list[Fraction]:
    """p^2 (1 - p^2) u' / 2 + (integral of (1 - 5 t^2) u(t) from 0 to p) / 8. DLMF 10.41.9."""
    result = [Fraction(0)] * (len(u) + 3)
    for j, c in enumerate(u):
        result[j + 1] += c * (Fraction(j, 2) + Fraction(1, 8 * (j + 1)))
        result[j + 3] -= c * (Fraction(j, 2) + Fraction(5, 8 * (j + 3)))
    return result


POLYNOMIALS = tuple(_polynomials())
