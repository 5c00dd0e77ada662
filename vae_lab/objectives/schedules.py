"""Schedules: a factor as a pure function of the optimiser step.

Used for the weight of the KL and for the learning rate; the factor multiplies the scheduled value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from vae_lab.utils.errors import UsageError

# The factor at a step (from 0) of training of a length, None if only a time limit ends it.
Schedule = Callable[[int, int | None], float]


def require_positive(**steps: int) -> None:
    """Raise ValueError unless every number of steps is at least 1."""
    for name, value in steps.items():
        if value < 1:
            raise ValueError(f"{name} is a number of optimiser steps, at least 1; found {value}")


@dataclass(frozen=True)
class Constant:
    """1 at every step."""

    def __call__(self, step: int, total_steps: int | None) -> float:
        return 1.0


@dataclass(frozen=True)
class LinearWarmup:
    """From `start` to 1 over `steps`, then 1. KL warm-up: Bowman et al. 2016, arXiv:1511.06349."""

    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        require_positive(steps=self.steps)

    def __call__(self, step: int, total_steps: int | None) -> float:
        """start + (1 - start) step / steps, at most 1."""
        return self.start + (1 - self.start) * min(1.0, step / self.steps)


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine down to `final` at the end. Loshchilov & Hutter 2017, arXiv:1608.03983.

    The end is that of the whole training: resumed for more epochs, the factor jumps up to the longer cosine.
    """

    warmup_steps: int = 0
    final: float = 0.0

    def __call__(self, step: int, total_steps: int | None) -> float:
        """Rises to 1 at warmup_steps, falls to `final` at total_steps. UsageError: total_steps is None."""
        if total_steps is None:
            raise UsageError(
                "a cosine schedule needs the number of training steps, and training has no step limit: "
                "set trainer.max_epochs or trainer.max_steps"
            )
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        progress = min(1.0, (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps))
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Cyclical:
    """A ramp from 0 to 1 over the first fraction `ramp` of each period, then 1. Fu et al. 2019, arXiv:1903.10145."""

    period: int
    ramp: float = 0.5

    def __post_init__(self) -> None:
        require_positive(period=self.period)
        if not 0 < self.ramp <= 1:
            raise ValueError(f"ramp is the rising fraction of a period, in (0, 1]; found {self.ramp}")

    def __call__(self, step: int, total_steps: int | None) -> float:
        """Elapsed fraction of the period over `ramp`, at most 1."""
        return min(1.0, (step % self.period) / self.period / self.ramp)
