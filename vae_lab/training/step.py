"""One training step: model, objective, optimiser, schedule, averaging, clipping; no Lightning.

What is compiled, captured, profiled or replayed is this. Everything random in a step is drawn from a generator seeded
by (seed, step), so a step is a pure function of the weights, the optimiser's state, the images and its number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_lab.data.transforms import Preprocess
from vae_lab.models.base import Model
from vae_lab.objectives.bounds import Weight, total_kl
from vae_lab.objectives.objective import Objective, Weights
from vae_lab.training.cuda_graphs import CUDAGraphRunner, Outputs
from vae_lab.training.nonfinite import (
    BufferSnapshot,
    OnNonFinite,
    can_skip_on_device,
    nonfinite_flag,
    propagate_nonfinite,
    skip_where,
)
from vae_lab.training.optimizer import OptimizerSettings, WeightAverage, adapt_optimizer_state
from vae_lab.utils.errors import UsageError
from vae_lab.utils.rng import TRAIN, seed_noise

TERMS = ("loss", "log_px", "kl")


def term_names(objective: Objective) -> tuple[str, ...]:
    """What a step measures: loss, log_px, kl, each regularizer before its weight, and what the discriminators minimise."""
    return (*TERMS, *objective.names, *(("discriminator",) if objective.discriminators else ()))


class StepRecord(NamedTuple):
    """What one step leaves on the device, to be read when something is shown."""

    terms: Tensor  # those of `term_names`: means over the step's images
    num_images: int
    nonfinite: Tensor  # (), 1 where the loss or a gradient was not finite and nothing was changed, else 0
    gradient_norm: Tensor | None  # (), when asked for


class StepRates(NamedTuple):
    """What the schedules give one step: numbers, or tensors () on the device of a step that is replayed."""

    lr: float | Tensor
    beta: float | Tensor
    capacity: float | Tensor
    average: float | Tensor  # weight of the new weights in their moving average
    factor: float | Tensor = 1.0  # of the learning rates

    @property
    def weights(self) -> Weights:
        """Those of the objective."""
        return Weights(self.beta, self.capacity)


@dataclass(frozen=True)
class Execution:
    """How a step is run; none of it changes what is computed by more than rounding.

    compile: torch.compile for the way from the images to the loss and back. cuda_graphs: record a whole step once on
    a GPU and replay it. Both serve whole batches; the short one at the end of an epoch runs as it is.
    """

    compile: bool = False
    cuda_graphs: bool = False


@dataclass
class TrainingStep:
    """All that one optimiser step needs; calling it makes the step."""

    model: Model
    objective: Objective
    preprocess: Preprocess
    optimizer: torch.optim.Optimizer
    settings: OptimizerSettings
    batch_size: int
    total_steps: int | None
    seed: int
    rank: int = 0
    average: WeightAverage | None = None
    # Averages gradients over devices; called once per step, after the last backward pass.
    reduce_gradients: Callable[[list[nn.Parameter]], None] | None = None
    execution: Execution = field(default_factory=Execution)
    # A step that is not finite changes nothing. stop: nor do those after it, until somebody has looked.
    on_nonfinite: OnNonFinite = "stop"

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        discriminators = [discriminator.discriminator.parameters() for discriminator in self.objective.discriminators]
        self.trained = [*self.parameters, *(p for parameters in discriminators for p in parameters)]
        adapt_optimizer_state(self.optimizer, self.execution.cuda_graphs)
        # A function is compiled, not the model: its names, and those in a checkpoint, stay.
        compiled = self.execution.compile
        # torch's own noise, or one run would mix two generators: short batches run as they are.
        options: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True}
        self._compiled = torch.compile(self._score, dynamic=False, options=options) if compiled else self._score
        self._replayed = CUDAGraphRunner(self._update_by, self.device) if self.execution.cuda_graphs else None
        self._buffers = BufferSnapshot(self.model, self.objective)
        self._stopped = torch.zeros((), device=self.device)
        # At each step: on the CPU nothing has to be waited for, and elsewhere only fused kernels take a flag.
        self.checks_every_step = self.device.type == "cpu" or not can_skip_on_device(self.optimizer)
        if self.execution.cuda_graphs and not can_skip_on_device(self.optimizer):
            raise UsageError(
                f"trainer.cuda_graphs=true: a step that is not finite is left out by the optimiser's fused kernels, "
                f"which {type(self.optimizer).__name__} as configured does not have.\n"
                "Set optimizer.algorithm.fused=true (Adam, AdamW, Adagrad), or trainer.cuda_graphs=false"
            )

    def __call__(self, images: Tensor, step: int, measure: bool = False, labels: Tensor | None = None) -> StepRecord:
        """Optimiser step number `step` (from 0) on uint8 images (N, C, H, W), N = batch_size * accumulate or less.

        measure: also return the norm of the model's gradient. labels: (N,), which a conditional model sees.
        """
        seed_noise(self.device, self.seed, TRAIN, self.rank, step)
        y = labels if self.model.conditional else None
        if self._replayed is not None and len(images) == self.batch_size * self.settings.accumulate:
            terms, nonfinite, norm = self._replayed(images, y, [float(rate) for rate in self.rates(step)])
        else:
            terms, nonfinite, norm = self._update(images, y, self.rates(step), measure)
        assert terms is not None
        assert nonfinite is not None
        return StepRecord(terms, len(images), nonfinite, norm)

    def rates(self, step: int) -> StepRates:
        """What the schedules give step number `step`."""
        average = 0.0 if self.average is None else self.average.weight(step)
        factor = self.settings.schedule(step, self.total_steps)
        beta, capacity = self.objective.weights_at(step, self.total_steps)
        return StepRates(self.settings.lr * factor, beta, capacity, average, factor)

    def _update(self, images: Tensor, y: Tensor | None, rates: StepRates, measure: bool = True) -> Outputs:
        """One step; the terms' means, whether it was left out, (), and the norm of the gradient if asked."""
        self._set_learning_rates(rates)
        self._buffers.save()
        terms = self._accumulate_gradients(images, y, rates.weights)
        gradients = [p.grad for p in self.trained if p.grad is not None]
        if self.reduce_gradients is not None:
            propagate_nonfinite(terms[0], gradients)
            self.reduce_gradients(self.trained)
        norm = self._clip(measure)
        nonfinite = nonfinite_flag(terms[0], gradients)
        self._apply_update(nonfinite, rates)
        for parameter in self.trained:
            parameter.grad = None  # as zero_grad does, in a tenth of its time
        return terms, nonfinite, norm

    def _update_by(self, images: Tensor, y: Tensor | None, rates: Sequence[Tensor]) -> Outputs:
        return self._update(images, y, StepRates(*rates))

    def _set_learning_rates(self, rates: StepRates) -> None:
        model, *groups = self.optimizer.param_groups
        model["lr"] = rates.lr
        for group, discriminator in zip(groups, self.objective.discriminators, strict=True):
            group["lr"] = discriminator.discriminator_lr * rates.factor

    def _apply_update(self, nonfinite: Tensor, rates: StepRates) -> None:
        """Change the weights and their average, or nothing at all where `bad` is 1."""
        if self.checks_every_step:
            if nonfinite:
                self._buffers.restore()
                return
            self.optimizer.step()
            self._update_average(rates.average)
            return
        if self.on_nonfinite == "stop":
            nonfinite.copy_(torch.maximum(nonfinite, self._stopped))
            self._stopped.copy_(nonfinite)
        skip_where(self.optimizer, nonfinite)
        self.optimizer.step()
        self._buffers.restore(nonfinite)
        self._update_average(rates.average * (1 - nonfinite))

    def _update_average(self, weight: Weight) -> None:
        if self.average is not None:
            self.average.update(self.model, weight)

    def _accumulate_gradients(self, images: Tensor, y: Tensor | None, weights: Weights) -> Tensor:
        """Gradients of the mean loss over all images, a batch at a time; the terms' means."""
        if len(images) <= self.batch_size:
            return self._backward(images, y, weights, 1.0)
        parts = images.split(self.batch_size)
        labels = [None] * len(parts) if y is None else y.split(self.batch_size)
        means = [self._backward(*pair, weights, len(pair[0]) / len(images)) for pair in zip(parts, labels, strict=True)]
        return torch.stack(means).sum(0)

    def _backward(self, images: Tensor, y: Tensor | None, weights: Weights, share: float) -> Tensor:
        if self.execution.compile and len(images) == self.batch_size:
            loss, means = self._compiled(images, y, Weights(*map(self._on_device, weights)))
        else:
            loss, means = self._score(images, y, weights)
        (loss if share == 1.0 else loss * share).backward()
        return means if share == 1.0 else means * share

    def _on_device(self, number: Weight) -> Tensor:
        """A number that changes from step to step, as compiled code takes it; filled in, where a copy would wait."""
        return number if isinstance(number, Tensor) else torch.full((), number, device=self.device)

    def _score(self, images: Tensor, y: Tensor | None, weights: Weights) -> tuple[Tensor, Tensor]:
        """What is differentiated, and the means of the terms without a gradient.

        The discriminators' loss is added to the model's: one backward pass, whose gradients do not meet.
        """
        x = self.preprocess.train(images)
        trace = self.model(self.preprocess.corrupt(x), self.objective.num_samples, y)
        inputs = self.model.regularizer_inputs(trace, x, y)
        terms = self.objective.terms(trace, x)
        losses, penalties = self.objective(inputs, terms, weights)
        loss, discriminator = losses.mean(), self.objective.discriminator_loss(inputs)
        with torch.no_grad():
            means = [loss.detach(), terms.log_px.mean(), total_kl(terms).mean(), *penalties.values()]
            means += [] if discriminator is None else [discriminator.detach()]
        return loss if discriminator is None else loss + discriminator, torch.stack(means)

    def _clip(self, measure: bool) -> Tensor | None:
        if self.settings.clip_norm is not None:
            return nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        if measure:
            return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        return None
