"""One training step: model, objective, optimiser, schedule, averaging, clipping; no Lightning.

This is the unit that is compiled or recorded. All noise of a step comes from a generator seeded by
(seed, step), so a step is a pure function of the weights, the optimiser's state, the images and the step number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vae_lab.data.transforms import Preprocess
from vae_lab.models.base import Model
from vae_lab.objectives.bounds import total_kl
from vae_lab.objectives.objective import Objective, Weights
from vae_lab.training.cuda_graphs import CUDAGraphRunner, Outputs
from vae_lab.training.nonfinite import (
    BufferSnapshot,
    OnNonFinite,
    can_skip_on_device,
    nonfinite_flag,
    watch_nonfinite,
)
from vae_lab.training.optimizer import OptimizerSettings, WeightAverage, adapt_optimizer_state
from vae_lab.utils.distributed import ONE_PROCESS, Share
from vae_lab.utils.rng import TRAIN, seed_noise

TERMS = ("loss", "log_px", "kl")


def term_names(objective: Objective) -> tuple[str, ...]:
    """Names of a step's terms: loss, log_px, kl, each regularizer (unweighted), and the discriminators' loss."""
    return (*TERMS, *objective.names, *(("discriminator",) if objective.discriminators else ()))


class StepRecord(NamedTuple):
    """Results of one step, kept on the device until they are logged."""

    terms: Tensor  # (terms,), named by `term_names`: means over the step's images
    num_images: int
    nonfinite: Tensor  # (), 1 if the loss or a gradient was not finite and nothing was changed, else 0
    gradient_norm: Tensor | None  # (), when measured


class ScheduledValues(NamedTuple):
    """Scheduled values of one step: floats, or tensors () on the device for a replayed step."""

    lr: float | Tensor
    beta: float | Tensor
    capacity: float | Tensor
    average: float | Tensor  # weight of the new weights in their moving average
    factor: float | Tensor = 1.0  # of the learning rates

    @property
    def weights(self) -> Weights:
        return Weights(self.beta, self.capacity)


@dataclass
class TrainingStep:
    """One optimiser step as a callable.

    share: of this process in the images of a step. reduce_gradients: averages gradients over devices; called once per
    step, after the last backward pass.
    compile: torch.compile for the forward and backward pass; `reduce-overhead` also records their kernels as CUDA
    graphs. cuda_graphs: record a whole step once on a GPU and replay it. Both change results by rounding only; a short
    batch at the end of an epoch runs eagerly.
    on_nonfinite: a non-finite step changes nothing; with `stop`, neither do those after it, until the flags are read.
    """

    model: Model
    objective: Objective
    preprocess: Preprocess
    optimizer: torch.optim.Optimizer
    settings: OptimizerSettings
    batch_size: int
    total_steps: int | None
    seed: int
    share: Share = ONE_PROCESS
    average: WeightAverage | None = None
    reduce_gradients: Callable[[list[nn.Parameter]], None] | None = None
    compile: bool | Literal["reduce-overhead"] = False
    cuda_graphs: bool = False
    on_nonfinite: OnNonFinite = "stop"

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        discriminators = [discriminator.discriminator.parameters() for discriminator in self.objective.discriminators]
        self.trained = [*self.parameters, *(p for parameters in discriminators for p in parameters)]
        adapt_optimizer_state(self.optimizer, self.cuda_graphs)
        # torch's own generator, since short batches run eagerly and would otherwise use another one.
        options: dict[str, Any] = {
            "fallback_random": True,
            "triton.cudagraphs": self.compile == "reduce-overhead",
        }
        # Compile a function, not the model: parameter names in checkpoints stay the same.
        self._compiled = torch.compile(self._score, dynamic=False, options=options) if self.compile else self._score
        self._replayed = None
        if self.cuda_graphs:
            self._replayed = CUDAGraphRunner(
                lambda images, y, rates: self._update(images, y, ScheduledValues(*rates)), self.device
            )
        self._buffers = BufferSnapshot(self.model, self.objective)
        self._stopped = torch.zeros((), device=self.device)
        # On the CPU the check costs no synchronisation; elsewhere only fused kernels accept a skip flag.
        self.checks_every_step = self.device.type == "cpu" or not can_skip_on_device(self.optimizer)
        self.skipped = False  # whether a check found the last step non-finite

    def __call__(self, images: Tensor, step: int, measure: bool = False, labels: Tensor | None = None) -> StepRecord:
        """Optimiser step number `step` (from 0) on uint8 images (N, C, H, W) of all processes, as each of them gets.

        N: batch_size * accumulate for each process, or less at the end of an epoch. measure: also return the norm of
        the model's gradient. labels: (N,), used by a conditional model.
        """
        seed_noise(self.device, self.seed, TRAIN, 0, step)
        y = labels if self.model.conditional else None
        if self._replayed is not None and len(images) == self.batch_size * self.settings.accumulate:
            terms, nonfinite, norm = self._replayed(images, y, [float(rate) for rate in self.rates(step)])
        else:
            terms, nonfinite, norm = self._update(images, y, self.rates(step), measure)
        assert terms is not None
        assert nonfinite is not None
        return StepRecord(terms, len(images), nonfinite, norm)

    def rates(self, step: int) -> ScheduledValues:
        """Scheduled values of step number `step`."""
        average = 0.0 if self.average is None else self.average.weight(step)
        factor = self.settings.schedule(step, self.total_steps)
        beta, capacity = self.objective.weights_at(step, self.total_steps)
        return ScheduledValues(self.settings.lr * factor, beta, capacity, average, factor)

    def locate_nonfinite(self, images: Tensor, step: int, labels: Tensor | None = None) -> str:
        """Repeat a step without its update, and name its first non-finite module and parameter.

        On the weights of now: with `on_nonfinite="skip"` on a device, later steps may have changed them.
        """
        seed_noise(self.device, self.seed, TRAIN, 0, step)
        y = labels if self.model.conditional else None
        training = self.model.training
        self.model.train()
        self._buffers.save()
        with torch.inference_mode(False), torch.enable_grad(), watch_nonfinite(self.model) as source:
            for part in self._parts(images, y):
                self._score(*part, self.rates(step).weights)[0].backward()
        self._buffers.restore()
        self.model.train(training)
        for parameter in self.trained:
            parameter.grad = None
        return str(source)

    def _update(self, images: Tensor, y: Tensor | None, rates: ScheduledValues, measure: bool = True) -> Outputs:
        """Run one step; returns the means of the terms, the skip flag (), and the gradient norm if measured."""
        self._set_learning_rates(rates)
        self._buffers.save()
        terms = self._accumulate_gradients(images, y, rates.weights)
        gradients = [gradient for p in self.trained if (gradient := p.grad) is not None]
        if self.reduce_gradients is not None:
            gradients[0].view(-1)[:1].add_(terms[0] * 0)  # a non-finite loss becomes a gradient of all processes
            self.reduce_gradients(self.trained)
        norm = self._clip(measure)
        nonfinite = nonfinite_flag(terms[0], gradients)
        self._apply_update(nonfinite, rates)
        for parameter in self.trained:
            parameter.grad = None  # as zero_grad does, ten times faster
        return terms, nonfinite, norm

    def _set_learning_rates(self, rates: ScheduledValues) -> None:
        model, *groups = self.optimizer.param_groups
        model["lr"] = rates.lr
        for group, discriminator in zip(groups, self.objective.discriminators, strict=True):
            group["lr"] = discriminator.discriminator_lr * rates.factor

    def _apply_update(self, nonfinite: Tensor, rates: ScheduledValues) -> None:
        """Update the weights and their average, or nothing if `nonfinite` is 1."""
        if self.checks_every_step:
            self.skipped = bool(nonfinite)
            if self.skipped:
                self._buffers.restore()
                return
            self.optimizer.step()
            if self.average is not None:
                self.average.update(self.model, rates.average)
            return
        if self.on_nonfinite == "stop":
            nonfinite.copy_(torch.maximum(nonfinite, self._stopped))
            self._stopped.copy_(nonfinite)
        # The fused kernels then change nothing, their state included, where the flag is 1.
        self.optimizer.found_inf, self.optimizer.grad_scale = nonfinite, None  # type: ignore[attr-defined]
        self.optimizer.step()
        self._buffers.restore(nonfinite)
        if self.average is not None:
            self.average.update(self.model, rates.average * (1 - nonfinite))

    def _accumulate_gradients(self, images: Tensor, y: Tensor | None, weights: Weights) -> Tensor:
        """Accumulate gradients of the mean loss over all images, batch by batch; returns the means of the terms."""
        if len(images) <= self.batch_size * self.share.world_size:
            return self._backward(images, y, weights, 1.0)
        means = [self._backward(*part, weights, len(part[0]) / len(images)) for part in self._parts(images, y)]
        return torch.stack(means).sum(0)

    def _parts(self, images: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The batches of a step, with their labels."""
        size = self.batch_size * self.share.world_size
        parts = images.split(size)
        return zip(parts, [None] * len(parts) if y is None else y.split(size), strict=True)

    def _backward(self, images: Tensor, y: Tensor | None, weights: Weights, share: float) -> Tensor:
        if self.compile and len(images) == self.batch_size * self.share.world_size:
            torch.compiler.cudagraph_mark_step_begin()  # of reduce-overhead: the last step's outputs may be overwritten
            # A number would be a constant of the compiled code; tensors are filled, since a copy would synchronise.
            filled = (w if isinstance(w, Tensor) else torch.full((), w, device=self.device) for w in weights)
            loss, means = self._compiled(images, y, Weights(*filled))
            means = means.clone()
        else:
            loss, means = self._score(images, y, weights)
        share *= self.share.weight(len(images))
        (loss if share == 1.0 else loss * share).backward()
        return means if share == 1.0 else means * share

    def _score(self, images: Tensor, y: Tensor | None, weights: Weights) -> tuple[Tensor, Tensor]:
        """The loss to differentiate, (), and the detached means of the terms, (terms,).

        The discriminators' loss is added for a single backward pass; it shares no gradients with the model's loss.
        """
        x = self.preprocess.train(images)
        own, total = self.share.rows(len(x)), len(x)
        corrupted, x, y = self.preprocess.corrupt(x)[own], x[own], None if y is None else y[own]
        with self.share.noise(total, self.objective.num_samples):
            trace = self.model(corrupted, self.objective.num_samples, y)
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
