"""A loss or a gradient that is not finite: found, and its step left out exactly, without reading from the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

OnNonFinite = Literal["stop", "skip"]


def nonfinite(loss: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """1 if the loss () or any gradient holds an infinity or no number, else 0: float32, (), on their device."""
    bad = (~loss.isfinite()).float()
    if gradients:
        # What torch's GradScaler looks with: one pass over all gradients, which it multiplies by 1.
        torch._amp_foreach_non_finite_check_and_unscale_(list(gradients), bad, torch.ones_like(bad))
    return bad


def spread(loss: Tensor, gradients: Sequence[Tensor]) -> None:
    """Make a gradient not finite where the loss is not, so that all processes that average theirs learn of it."""
    if gradients:
        gradients[0].view(-1)[:1].add_(loss.detach() * 0)


def can_leave_out(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser's own kernels obey a flag on the device, as the fused ones of torch do.

    Not SGD's with momentum: left out at its first step, it takes memory that nobody has written for its momentum.
    """
    momentum = any(group.get("momentum") for group in optimizer.param_groups)
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False)) and not momentum


def leave_out(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Have the next `optimizer.step()` change nothing, its own state included, where `bad` is 1."""
    optimizer.found_inf, optimizer.grad_scale = bad, None  # type: ignore[attr-defined]


class Buffers:
    """What a forward pass in training changes besides the weights (codebooks, running means), to be put back."""

    def __init__(self, *parts: nn.Module) -> None:
        self._buffers = [
            buffer
            for part in parts
            for module in part.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set
        ]
        self._before: list[Tensor] = []

    def remember(self) -> None:
        """As they are now."""
        self._before = [buffer.clone() for buffer in self._buffers]

    def put_back(self, bad: Tensor | None = None) -> None:
        """As they were, where `bad` is 1 (everywhere without it)."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before if bad is None else torch.where(bad > 0, before, buffer))
