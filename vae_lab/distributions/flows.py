"""Flows: invertible maps of vectors with exact log-determinants and inverses, and the distributions they make.

Weights belong to networks, which outlive a flow. Everything acts on the last dimension, D, and broadcasts over those
before it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import logsigmoid, normalize, softplus

from vae_lab.core import EMPTY_SHAPE, SampleShape
from vae_lab.distributions.base import UnvalidatedDistribution
from vae_lab.distributions.gaussians import soft_clamp
from vae_lab.networks.autoregressive import MADE


class Flow:
    """An invertible map x to y."""

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (*, D) to y (*, D) and log |det dy/dx| (*)."""
        raise NotImplementedError

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """y (*, D) to x (*, D) and log |det dy/dx| (*) of the forward map."""
        raise NotImplementedError


class FlowDistribution(UnvalidatedDistribution):
    """Samples of `base`, a distribution of vectors, after flows. `log_prob` inverts the flows, last to first.

    Computes in the precision of its vectors, regardless of autocast, under which a map and its inverse would round
    differently.
    """

    def __init__(self, base: Distribution, flows: Sequence[Flow]) -> None:
        self.base, self.flows, self.has_rsample = base, flows, base.has_rsample
        super().__init__(base.batch_shape, base.event_shape)

    def rsample_and_log_prob(self, sample_shape: SampleShape = EMPTY_SHAPE) -> tuple[Tensor, Tensor]:
        x = self.base.rsample(torch.Size(sample_shape))
        y, log_det = self._push(x)
        return y, self.base.log_prob(x) - log_det

    def rsample(self, sample_shape: SampleShape = EMPTY_SHAPE) -> Tensor:
        return self._push(self.base.rsample(torch.Size(sample_shape)))[0]

    def log_prob(self, value: Tensor) -> Tensor:
        log_dets = []
        with without_autocast(value):
            for flow in reversed(self.flows):
                value, log_det = flow.inverse_and_log_det(value)
                log_dets.append(log_det)
        log_prob: Tensor = self.base.log_prob(value) - functools.reduce(torch.add, log_dets)
        return log_prob

    def _push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x through all flows, and the log-determinant, summed from the last flow as in `log_prob`: equal rounding."""
        log_dets = []
        with without_autocast(x):
            for flow in self.flows:
                x, log_det = flow.forward_and_log_det(x)
                log_dets.append(log_det)
        return x, functools.reduce(torch.add, reversed(log_dets))


def without_autocast(x: Tensor) -> torch.autocast:
    """Disable autocast for operations on x."""
    return torch.autocast(x.device.type, enabled=False)


class InverseAutoregressive(Flow):
    """y = gate x + (1 - gate) mean, both from the preceding features. Kingma et al. 2016, arXiv:1606.04934, alg. 1.

    The inverse takes D passes of the network, the forward map one. Gates lie between 0.0009 and 0.9991, so that the map
    can be inverted in float precision. network: a MADE. context: (B, C).
    """

    GATE_START = 2.0  # logit of a mostly open gate, as the paper advises
    GATE_LIMIT = 7.0  # of the logit; close to the identity well below it

    def __init__(self, network: MADE, context: Tensor) -> None:
        self.network, self.context = network, context

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logit = self._step(x)
        return torch.lerp(mean, x, logit.sigmoid()), logsigmoid(logit).sum(-1)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """One feature per pass, in autoregressive order."""
        degrees = self.network.degrees
        x = torch.zeros_like(y)
        for degree in range(y.shape[-1]):
            mean, logit = self._step(x)
            x = torch.where(degrees == degree, mean + (y - mean) / logit.sigmoid(), x)
        return x, logsigmoid(logit).sum(-1)  # the last pass had every feature that gates depend on

    def _step(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logit = self.network(x, self.context)
        return mean, soft_clamp(logit, self.GATE_LIMIT)


class Planar(Flow):
    """y = x + u' tanh(w.x + b). Rezende & Mohamed 2015, arXiv:1505.05770, eq. 10.

    u, w: (B, D), b: (B, 1), unconstrained: u' is u moved along w until w.u' > -1, which makes the map invertible (A.1).
    The paper's softplus is shifted so that u' = u where w.u = 0; otherwise u' would grow without limit as w vanishes.
    The inverse solves a monotone scalar equation by bisection; it has first derivatives only.
    """

    LEAST_SLOPE = 1e-3  # of the map along w; at 0 it would not be invertible
    SMALLEST = 1e-8  # lower bound of |w|^2 as a divisor
    BISECTIONS = 60

    def __init__(self, u: Tensor, w: Tensor, b: Tensor) -> None:
        along, square = dot(w, u), dot(w, w)
        least = self.LEAST_SLOPE - 1
        move = softplus(along + math.log(math.expm1(-least))) + least - along
        move = move / square.clamp(min=self.SMALLEST)
        self.u, self.w, self.b = u + move * w, w, b
        self.slope = along + move * square  # w.u', without the rounding error of that product

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-determinant by the matrix determinant lemma."""
        bend = torch.tanh(dot(self.w, x) + self.b)
        return x + self.u * bend, self._log_det(bend)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Solve for w.x + b first, then for x."""
        bend = torch.tanh(self._solve(dot(self.w, y) + self.b))
        return y - self.u * bend, self._log_det(bend)

    def _log_det(self, bend: Tensor) -> Tensor:
        return torch.log1p(self.slope * (1 - bend.square())).squeeze(-1)

    def _solve(self, target: Tensor) -> Tensor:
        """Root a of a + slope tanh(a) = target."""
        with torch.no_grad():
            a, half = target, self.slope.abs()
            for _ in range(self.BISECTIONS):
                half = half / 2
                a = a + half * torch.sign(target - a - self.slope * torch.tanh(a))
        bend = torch.tanh(a)
        # A Newton step: the last digits, and the gradient of the root as an implicit function.
        return a - (a + self.slope * bend - target) / (1 + self.slope * (1 - bend.square()))


class Householder(Flow):
    """The reflection y = x - 2 v (v.x) / |v|^2: orthogonal, its own inverse. Tomczak & Welling 2016, arXiv:1611.09630.

    vector: v, (B, D); the identity at v = 0.
    """

    def __init__(self, vector: Tensor) -> None:
        self.unit = normalize(vector, dim=-1)

    def reflect(self, x: Tensor) -> Tensor:
        return x - 2 * dot(x, self.unit) * self.unit

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.reflect(x)
        return y, y.new_zeros(y.shape[:-1])

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_and_log_det(y)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product over the last dimension, (*, 1)."""
    return (a * b).sum(-1, keepdim=True)


class AffineCoupling(Flow):
    """Scale and shift one half of the features given the other half. Dinh et al. 2017, arXiv:1605.08803, eq. 4.

    network: from the fixed half (the first, with the odd feature; swapped: the second) to twice the size of the other.
    """

    LOG_SCALE_LIMIT = 3.0  # scales between 0.05 and 20; close to the identity well below it

    def __init__(self, network: nn.Module, swapped: bool) -> None:
        self.network, self.swapped = network, swapped

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fixed, changed = self._halves(x)
        log_scale, shift = self._step(fixed)
        return self._whole(fixed, changed * log_scale.exp() + shift), log_scale.sum(-1)

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        fixed, changed = self._halves(y)
        log_scale, shift = self._step(fixed)
        return self._whole(fixed, (changed - shift) * (-log_scale).exp()), log_scale.sum(-1)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.tensor_split(2, -1)
        return (second, first) if self.swapped else (first, second)

    def _whole(self, fixed: Tensor, changed: Tensor) -> Tensor:
        return torch.cat((changed, fixed) if self.swapped else (fixed, changed), -1)

    def _step(self, fixed: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.network(fixed).chunk(2, -1)
        return soft_clamp(log_scale, self.LOG_SCALE_LIMIT), shift
