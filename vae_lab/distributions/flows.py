"""Invertible maps of vectors with exact log-determinants and inverses, as transforms of torch.distributions.

Weights belong to networks, which outlive a transform. Everything acts on the last dimension, D, and broadcasts over
those before it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import Transform, _InverseTransform
from torch.nn.functional import logsigmoid, normalize, softplus

from vae_lab.networks.made import MADE

Version = int | Tensor


class CachedPair(NamedTuple):
    """The last pair that a flow computed, and the state that shows whether it is still valid."""

    x: Tensor
    y: Tensor
    log_det: Tensor  # log |det dy/dx|
    versions: tuple[Version, Version]  # of x and y
    tracked: tuple[bool, bool, bool]  # `grad_state(y)`

    @classmethod
    def of(cls, x: Tensor, y: Tensor, log_det: Tensor) -> CachedPair:
        return cls(x, y, log_det, (version_of(x), version_of(y)), grad_state(y))

    def is_valid(self) -> bool:
        """Whether neither tensor has changed in place since, and no gradient is needed that was not recorded."""
        if not (is_unchanged(self.x, self.versions[0]) and is_unchanged(self.y, self.versions[1])):
            return False
        now = grad_state(self.y)
        return now[1:] == self.tracked[1:] and now[0] <= self.tracked[0]


def version_of(tensor: Tensor) -> Version:
    """Version counter of a tensor, for `is_unchanged`; in inference mode, which counts no versions, a copy."""
    if torch.compiler.is_compiling():
        return 0  # compiled code cannot read versions; our compiled step changes no sample in place
    return tensor.clone() if tensor.is_inference() else tensor._version


def is_unchanged(tensor: Tensor, marked: Version) -> bool:
    """Whether a tensor has not changed in place since `marked`. (Reads back from the device in inference mode.)"""
    if torch.compiler.is_compiling():
        return True
    return torch.equal(tensor, marked) if isinstance(marked, Tensor) else tensor._version == marked


def grad_state(y: Tensor) -> tuple[bool, bool, bool]:
    """Whether gradients are enabled, y requires one, and y is a leaf."""
    return torch.is_grad_enabled(), y.requires_grad, y.is_leaf


class Flow(Transform):
    """An invertible map x to y that caches the last pair and its log-determinant.

    So the density of a sample needs no inverse. torch's own cache compares identities only: it would also return a pair
    for a sample changed in place, and one without a gradient for a sample from no_grad. Both are recomputed here.
    Computes in the precision of x, regardless of autocast.
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)
        self._cached: CachedPair | None = None

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (*, D) to y (*, D) and log |det dy/dx| (*)."""
        raise NotImplementedError

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """y (*, D) to x (*, D) and log |det dy/dx| (*) of the forward map."""
        raise NotImplementedError

    @property
    def inv(self) -> Transform:
        """The inverse; not cached, since a reference cycle would keep samples alive after their step."""
        return _InverseTransform(self)

    def __call__(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            y, log_det = self.forward_and_log_det(x)
        self._cached = CachedPair.of(x, y, log_det)
        return y

    def _inv_call(self, y: Tensor) -> Tensor:
        if self._cached is not None and self._cached.y is y and self._cached.is_valid():
            return self._cached.x
        with without_autocast(y):
            x, log_det = self.inverse_and_log_det(y)
        self._cached = CachedPair.of(x, y, log_det)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |det dy/dx|, (*)."""
        cached = self._cached
        if cached is not None and cached.x is x and cached.y is y and cached.is_valid():
            return cached.log_det
        with without_autocast(x):
            return self.forward_and_log_det(x)[1]


def without_autocast(x: Tensor) -> torch.autocast:
    """Disable autocast, under which a map and its inverse would round differently."""
    return torch.autocast(x.device.type, enabled=False)


class InverseAutoregressive(Flow):
    """y = gate x + (1 - gate) mean, both from the preceding features. Kingma et al. 2016, arXiv:1606.04934, alg. 1.

    The inverse takes D passes of the network, the forward map one. Gates lie between 0.0009 and 0.9991, so that the map
    can be inverted in float precision. network: a MADE. context: (B, C).
    """

    GATE_START = 2.0  # logit of a mostly open gate, as the paper advises
    GATE_LIMIT = 7.0  # of the logit; close to the identity well below it

    def __init__(self, network: MADE, context: Tensor) -> None:
        super().__init__()
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
        return mean, self.GATE_LIMIT * torch.tanh(logit / self.GATE_LIMIT)


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
        super().__init__()
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
        super().__init__()
        self.unit = normalize(vector, dim=-1)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x - 2 * dot(x, self.unit) * self.unit
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
        super().__init__()
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
        return self.LOG_SCALE_LIMIT * torch.tanh(log_scale / self.LOG_SCALE_LIMIT), shift


class FeaturesFirst(Flow):
    """(*, h, w, D) to (*, D, h, w): from the layout of flows, features last, to that of maps, features first."""

    domain = codomain = constraints.independent(constraints.real, 3)

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.movedim(-1, -3), x.new_zeros(x.shape[:-3])

    def inverse_and_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y.movedim(-3, -1), y.new_zeros(y.shape[:-3])

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-3], shape[-1], *shape[-3:-1]))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-3], *shape[-2:], shape[-3]))
