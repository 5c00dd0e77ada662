"""Modified Bessel functions of the first kind, I_v(x), of real order v >= 0; torch has orders 0 and 1 only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import Tensor

# From this order on, this many terms of Debye's expansion are exact to float64 rounding for every x > 0.
MIN_EXPANSION_ORDER = 15
NUM_TERMS = 10


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
