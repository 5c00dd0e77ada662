"""Non-finite losses and gradients: detect and locate them, skip the step exactly, stop training or continue."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vae_lab.utils.errors import RunFailed

log = logging.getLogger("vae_lab")
OnNonFinite = Literal["stop", "skip"]
MAX_LOCATED = 3  # skipped steps that are repeated to locate the first non-finite value
MAX_CONSECUTIVE = 100
STOPPED = "Training stopped; the checkpoints hold the last finite weights."


def ways_out(lr: float, policy: OnNonFinite, precision: str) -> str:
    """What may help against a non-finite loss under these options: the first can be set at a resume."""
    found = [f"resume=RUN optimizer.lr={lr / 10:g}"]
    found += ["trainer.on_nonfinite=skip"] if policy == "stop" else []
    found += [f"trainer.precision=32-true instead of {precision}"] if precision not in ("32", "32-true") else []
    return f"{STOPPED} Try {', or '.join(found)}; a new run may also set optimizer.clip_norm=1."


def nonfinite_flag(loss: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """1 if the loss () or any gradient holds an infinity or NaN, else 0: float32, (), on their device."""
    nonfinite = torch.zeros_like(loss, dtype=torch.float32)
    # The check of torch's GradScaler: one pass over all of them, here with a scale of 1.
    torch._amp_foreach_non_finite_check_and_unscale_([loss, *gradients], nonfinite, torch.ones_like(nonfinite))
    return nonfinite


def can_skip_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser's kernels obey a skip flag on the device, as torch's fused ones do.

    Not SGD with momentum: if its first step is skipped, it uses uninitialised memory as its momentum.
    """
    momentum = any(group.get("momentum") for group in optimizer.param_groups)
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False)) and not momentum


class BufferSnapshot:
    """A copy of the buffers that a training forward pass changes (codebooks, running means), to restore them."""

    def __init__(self, *parts: nn.Module) -> None:
        states = (value for part in parts for value in part.state_dict(keep_vars=True).values())
        self._buffers = [value for value in states if not isinstance(value, nn.Parameter)]
        self._before: list[Tensor] = []

    def save(self) -> None:
        self._before = [buffer.clone() for buffer in self._buffers]

    def restore(self, nonfinite: Tensor | None = None) -> None:
        """Restore the buffers if `nonfinite` is 1 (always without it)."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before if nonfinite is None else torch.where(nonfinite > 0, before, buffer))


@dataclass
class NonFiniteSource:
    """Where a step first became non-finite; empty names: nowhere."""

    weight: str = ""  # a parameter, before the step
    module: str = ""  # with a non-finite output, in the order of the forward pass
    parameter: str = ""  # with a non-finite gradient, in the order of the backward pass

    def __str__(self) -> str:
        if self.weight:
            return f"Before the step, the weights {self.weight} were not finite."
        output = self.module or "none, it arose in the densities or the objective"
        gradient = self.parameter or "none"
        return f"First non-finite output: {output}; first non-finite gradient: {gradient}."

    def check_output(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self.module and isinstance(output, Tensor) and not output.isfinite().all():
            self.module = f"{name} ({type(module).__name__})"

    def check_gradient(self, name: str, gradient: Tensor) -> None:
        if not self.parameter and not gradient.isfinite().all():
            self.parameter = name


@contextmanager
def watch_nonfinite(model: nn.Module) -> Iterator[NonFiniteSource]:
    """Record the first non-finite values of the forward and backward passes of the model inside the context."""
    weights = (name for name, weight in model.named_parameters() if not weight.isfinite().all())
    source = NonFiniteSource(weight=next(weights, ""))
    hooks = [
        module.register_forward_hook(partial(source.check_output, name))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    hooks += [
        weight.register_hook(partial(source.check_gradient, name))
        for name, weight in model.named_parameters()
        if weight.requires_grad
    ]
    try:
        yield source
    finally:
        for hook in hooks:
            hook.remove()


class NonFiniteLoss(RunFailed):
    """A term of the loss, a gradient or a weight became infinite or NaN."""


class NonFinitePolicy:
    """Stops at the first non-finite step; or skips and counts them, and stops at too many in a row."""

    def __init__(self, answer: OnNonFinite, advice: str = STOPPED) -> None:
        self.advice = advice
        self.stops = answer == "stop"
        self.num_skipped = 0
        self._at, self._in_a_row = -1, 0

    def handle(self, step: int, terms: dict[str, float], locate: Callable[[], str]) -> None:
        """Handle non-finite step number `step` (from 0). locate: names where it arose. NonFiniteLoss: stop."""
        values = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        order = ("log_px", "kl", "loss")  # the loss is computed from the others
        named = [f"{name} became {terms[name]}" for name in order if not math.isfinite(terms[name])]
        found = named[0] if named else "a gradient became infinite or NaN"
        message = f"{found} at optimiser step {step + 1} ({values})."
        if self.stops:
            raise NonFiniteLoss(f"{message}\n{locate()}\n{self.advice}")
        self.num_skipped += 1
        if self.num_skipped <= MAX_LOCATED:
            log.warning("skipped step: %s\n%s", message, locate())
        self._in_a_row = self._in_a_row + 1 if step == self._at + 1 else 1
        self._at = step
        if self._in_a_row == MAX_CONSECUTIVE:
            raise NonFiniteLoss(f"{message}\nThe {MAX_CONSECUTIVE - 1} steps before it were skipped too. {self.advice}")

    def state_dict(self) -> dict[str, int]:
        return {"num_skipped": self.num_skipped, "at": self._at, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.num_skipped, self._at, self._in_a_row = state["num_skipped"], state["at"], state["in_a_row"]


def require_finite(parts: Sequence[nn.Module], step: int, advice: str = STOPPED) -> None:
    """NonFiniteLoss if a weight is not finite: an update by a finite gradient may have overflowed it."""
    weights = (named for part in parts for named in part.named_parameters())
    nonfinite = next((name for name, weight in weights if not weight.isfinite().all()), None)
    if nonfinite is not None:
        raise NonFiniteLoss(f"the weights {nonfinite} became infinite or NaN by optimiser step {step}.\n{advice}")
