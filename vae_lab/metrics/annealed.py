"""Annealed importance sampling with HMC transitions: log p(x) where the importance-weighted bound is loose.

Neal 2001, arXiv:physics/9803008; for decoders Wu et al. 2017, arXiv:1611.04273; both bounds on simulated data Grosse
et al. 2015, arXiv:1511.02543. B images, C chains of each; z is (C, B, *event); densities are in nats, (C, B).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from vae_lab.utils.callables import Track, untracked

LogDensity = Callable[[Tensor], Tensor]  # z (C, B, *event) to (C, B)
TARGET_ACCEPTANCE, ADAPTATION = 0.65, 1.1


class Path(NamedTuple):
    """Densities from one that is normalised to one that is not: log f_b = (1 - b) log_start + b log_target."""

    log_start: LogDensity  # log q(z|x) or log p(z)
    log_target: LogDensity  # log p(x, z)

    def at(self, b: float, z: Tensor) -> Tensor:
        """log f_b(z), (C, B); both densities are evaluated, as HMC needs their gradients."""
        return (1 - b) * self.log_start(z) + b * self.log_target(z)


class Annealed(NamedTuple):
    """Weights of the chains, (C, B), and the share of HMC proposals that were accepted."""

    log_weights: Tensor
    acceptance: float

    @property
    def log_px(self) -> Tensor:
        """log of the mean weight, (B,): in expectation at most log p(x), for chains from the start."""
        return self.log_weights.logsumexp(0) - math.log(len(self.log_weights))

    @property
    def upper_bound(self) -> Tensor:
        """minus log of the mean weight, (B,), of chains from the target: in expectation at least log p(x)."""
        return -self.log_px


def schedule(num_steps: int) -> list[float]:
    """num_steps + 1 values from 0 to 1, dense at both ends: a sigmoid."""
    if num_steps < 1:
        raise ValueError(f"annealing needs at least 1 step, found {num_steps}")
    raw = torch.linspace(-4, 4, num_steps + 1, dtype=torch.float64).sigmoid()
    return [float(b) for b in (raw - raw[0]) / (raw[-1] - raw[0])]


def anneal(
    path: Path, z: Tensor, num_steps: int, num_leapfrog: int = 10, backwards: bool = False,
    step_size: float = 0.1, track: Track = untracked,
) -> Annealed:  # fmt: skip
    """Weights of chains that start at z and move by one HMC transition at each of `num_steps` densities.

    z: exact samples of the start, or with `backwards` of the target: then the weights estimate 1 / p(x).
    The step size adapts to an acceptance of 0.65, for each image, while the chains go.
    """
    betas = schedule(num_steps)
    betas = betas[::-1] if backwards else betas
    z, weights = z.detach(), torch.zeros(z.shape[:2], device=z.device)
    sizes, accepted = torch.full(z.shape[1:2], step_size, device=z.device), []
    for before, after in track(pairwise(betas), "steps of annealing", num_steps):
        with torch.no_grad():
            weights = weights + (after - before) * (path.log_target(z) - path.log_start(z))
        z, accept = hmc(lambda each, b=after: path.at(b, each), z, sizes, num_leapfrog)  # type: ignore[misc]
        rate = accept.float().mean(0)
        sizes = sizes * torch.where(rate > TARGET_ACCEPTANCE, ADAPTATION, 1 / ADAPTATION)
        accepted.append(rate.mean())
    return Annealed(weights, float(torch.stack(accepted).mean()))


def hmc(log_density: LogDensity, z: Tensor, step_size: Tensor, num_leapfrog: int) -> tuple[Tensor, Tensor]:
    """One Hamiltonian Monte Carlo transition of each chain: the new z, and which proposals were accepted, (C, B).

    step_size: of each image, (B,). Neal 2011, arXiv:1206.1901.
    """
    size = step_size.reshape(1, -1, *(1,) * (z.ndim - 2))
    momentum = torch.randn_like(z)
    before, gradient = _value_and_gradient(log_density, z)
    energy = before - _kinetic(momentum)
    proposal, momentum = z, momentum + 0.5 * size * gradient
    for left in range(num_leapfrog - 1, -1, -1):
        proposal = proposal + size * momentum
        after, gradient = _value_and_gradient(log_density, proposal)
        momentum = momentum + (size if left else 0.5 * size) * gradient
    change = after - _kinetic(momentum) - energy
    accepted = torch.rand_like(change).log() < change  # False for a change that is not a number
    return torch.where(accepted.reshape(*accepted.shape, *(1,) * (z.ndim - 2)), proposal, z), accepted


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.square().flatten(2).sum(2)


def _value_and_gradient(log_density: LogDensity, z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = log_density(z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient
