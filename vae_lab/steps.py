"""One training step: model, objective, optimiser, schedule, averaging, clipping; no Lightning.

What is compiled, captured, profiled or replayed is this. Everything random in a step is drawn from a generator seeded
by (seed, step), so a step is a pure function of the weights, the optimiser's state, the images and its number.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vae_lab.data.preprocess import Preprocess
from vae_lab.models import VAE
from vae_lab.objectives import Objective
from vae_lab.random_streams import TRAIN, seed_noise
from vae_lab.schedules import Constant, Schedule

TERMS = ("loss", "log_px", "kl")


class SteppingOptimizer(Protocol):
    """What a step needs of an optimiser (Lightning's wrapper is one, and counts the steps)."""

    param_groups: list[dict[str, object]]

    def step(self) -> object:
        """Update the weights."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        ...


@dataclass(frozen=True)
class OptimizerSettings:
    """How weights are updated; the options are those of `optimizer.*`.

    algorithm: a torch.optim class that takes (parameters, lr). schedule: a factor on `lr` per step.
    clip_norm: largest norm of the gradient, None for no limit. accumulate: batches in one step.
    ema_decay: decay of an exponential moving average of the weights, used wherever the model is evaluated.
    """

    algorithm: Callable[..., torch.optim.Optimizer]
    lr: float = 1e-3
    schedule: Schedule = field(default_factory=Constant)
    clip_norm: float | None = None
    accumulate: int = 1
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ValueError(f"optimizer.lr is at least 0; found {self.lr}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optimizer.clip_norm is above 0, or null for no limit; found {self.clip_norm}")
        if self.accumulate < 1:
            raise ValueError(f"optimizer.accumulate is a number of batches, at least 1; found {self.accumulate}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"optimizer.ema_decay lies between 0 and 1, or is null; found {self.ema_decay}")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of these parameters."""
        return self.algorithm([p for p in parameters if p.requires_grad], lr=self.lr)


class WeightAverage(nn.Module):
    """An exponential moving average of a model's weights: a model of its own, never trained.

    The decay rises as (1 + step) / (10 + step) to `decay`, so that early averages forget the initial weights.
    """

    def __init__(self, model: VAE, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    def train(self, mode: bool = True) -> WeightAverage:
        """Never in training mode: it is what evaluation sees."""
        return super().train(False)

    @torch.no_grad()
    def update(self, model: VAE, step: int) -> None:
        """Move towards the weights after step `step`; buffers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)


class StepRecord(NamedTuple):
    """What one step leaves on the device, to be read when something is shown."""

    terms: Tensor  # loss, log_px, kl: means over the step's images, (3,)
    num_images: int
    gradient_norm: Tensor | None  # (), when asked for


@dataclass
class TrainingStep:
    """All that one optimiser step needs; calling it makes the step."""

    model: VAE
    objective: Objective
    preprocess: Preprocess
    optimizer: SteppingOptimizer
    settings: OptimizerSettings
    batch_size: int
    total_steps: int | None
    seed: int
    rank: int = 0
    average: WeightAverage | None = None
    # Averages gradients over devices; called once per step, after the last backward pass.
    reduce_gradients: Callable[[list[nn.Parameter]], None] | None = None

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device

    def __call__(self, images: Tensor, step: int, measure: bool = False) -> StepRecord:
        """Optimiser step number `step` (from 0) on uint8 images (N, C, H, W), N = batch_size * accumulate or less.

        measure: also return the norm of the gradient.
        """
        seed_noise(self.device, self.seed, TRAIN, self.rank, step)
        self._set_learning_rate(step)
        terms = self._accumulate_gradients(images, step)
        if self.reduce_gradients is not None:
            self.reduce_gradients(self.parameters)
        norm = self._clip(measure)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, step)
        return StepRecord(terms, len(images), norm)

    def learning_rate(self, step: int) -> float:
        """The learning rate of step `step`."""
        return self.settings.lr * self.settings.schedule(step, self.total_steps)

    def _set_learning_rate(self, step: int) -> None:
        lr = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _accumulate_gradients(self, images: Tensor, step: int) -> Tensor:
        """Gradients of the mean loss over all images, a batch at a time; the terms' means, (3,)."""
        if len(images) <= self.batch_size:
            return self._backward(images, step, 1.0)
        parts = [self._backward(part, step, len(part) / len(images)) for part in images.split(self.batch_size)]
        return torch.stack(parts).sum(0)

    def _backward(self, images: Tensor, step: int, share: float) -> Tensor:
        x = self.preprocess.train(images)
        trace = self.model(x, self.objective.num_samples)
        terms = self.objective.terms(trace, x)
        loss = self.objective(trace, terms, step, self.total_steps).mean()
        (loss if share == 1.0 else loss * share).backward()
        with torch.no_grad():
            means = torch.stack((loss, terms.log_px.mean(), terms.kl.sum(0).mean()))
            return means if share == 1.0 else means * share

    def _clip(self, measure: bool) -> Tensor | None:
        if self.settings.clip_norm is not None:
            return nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        if measure:
            return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        return None
