"""Optimiser settings (algorithm, schedule, clipping), moving average of the weights, optimiser state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vae_lab.models.base import Model
from vae_lab.objectives.bounds import Weight
from vae_lab.objectives.regularizers.base import AdversarialRegularizer
from vae_lab.objectives.schedules import Constant, Schedule


@dataclass(frozen=True)
class OptimizerSettings:
    """The options `optimizer.*`.

    algorithm: a torch.optim class that takes (parameters, lr). schedule: a factor on `lr` per step.
    clip_norm: largest gradient norm, None for no limit. accumulate: batches per step.
    ema_decay: decay of an exponential moving average of the weights, used for evaluation.
    """

    algorithm: Callable[..., torch.optim.Optimizer]
    lr: float = 1e-3
    schedule: Schedule = field(default_factory=Constant)
    clip_norm: float | None = None
    accumulate: int = 1
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ValueError(f"optimizer.lr must be at least 0; found {self.lr}")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optimizer.clip_norm must be above 0, or null for no limit; found {self.clip_norm}")
        if self.accumulate < 1:
            raise ValueError(f"optimizer.accumulate must be a number of batches, at least 1; found {self.accumulate}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"optimizer.ema_decay must be between 0 and 1, or null; found {self.ema_decay}")

    def build(
        self, parameters: Iterable[nn.Parameter], discriminators: Sequence[AdversarialRegularizer] = ()
    ) -> torch.optim.Optimizer:
        """The optimiser; each discriminator has a parameter group of its own with its own learning rate."""
        groups: list[Any] = [p for p in parameters if p.requires_grad]
        if discriminators:
            others = [
                {"params": list(discriminator.discriminator.parameters()), "lr": discriminator.discriminator_lr}
                for discriminator in discriminators
            ]
            groups = [{"params": groups}, *others]
        return self.algorithm(groups, lr=self.lr)


class WeightAverage(nn.Module):
    """An exponential moving average of a model's weights, kept in a copy of the model that is never trained.

    The decay rises as (1 + step) / (10 + step) to `decay`, so that the average soon forgets the initial weights.
    """

    def __init__(self, model: Model, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    def train(self, mode: bool = True) -> WeightAverage:
        """Stay in evaluation mode, since only evaluation uses it."""
        return super().train(False)

    def weight(self, step: int) -> float:
        """One minus the decay after step number `step`: the weight of the new weights in the average."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: Model, weight: Weight) -> None:
        """Move the average towards the model's weights by the fraction `weight`; buffers are copied.

        Not those of the likelihood: what was fitted to the averaged weights stays theirs.
        """
        averages: list[Tensor] = list(self.model.parameters())
        weights: list[Tensor] = list(model.parameters())
        if isinstance(weight, Tensor):  # lerp would read it back from the device
            moves = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(moves, weight)
            torch._foreach_add_(averages, moves)
        else:
            torch._foreach_lerp_(averages, weights, weight)
        for (name, average), buffer in zip(self.model.named_buffers(), model.buffers(), strict=True):
            if not name.startswith("likelihood."):
                average.copy_(buffer)


def adapt_optimizer_state(optimizer: torch.optim.Optimizer, capturable: bool) -> None:
    """Adapt a loaded state to this execution: the checkpoint may come from a run with another memory layout."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = capturable
        for weight in group["params"]:
            state = optimizer.state.get(weight, {})
            if isinstance(count := state.get("step"), Tensor):
                on_device = capturable or group.get("fused")  # otherwise torch reads it on the host
                state["step"] = count.to(weight.device if on_device else "cpu", torch.float32)
            for name, value in state.items():
                # A fused update reads both in memory order and ignores their strides.
                if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                    state[name] = torch.empty_like(weight).copy_(value)
