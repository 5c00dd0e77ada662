"""A loss or a gradient that is not finite: found, its step left out exactly, and what training does about it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vae_lab.utils.errors import RunFailed

OnNonFinite = Literal["stop", "skip"]


def nonfinite_flag(loss: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """1 if the loss () or any gradient holds an infinity or no number, else 0: float32, (), on their device."""
    nonfinite = (~loss.isfinite()).float()
    if gradients:
        # What torch's GradScaler looks with: one pass over all gradients, which it multiplies by 1.
        torch._amp_foreach_non_finite_check_and_unscale_(list(gradients), nonfinite, torch.ones_like(nonfinite))
    return nonfinite


def propagate_nonfinite(loss: Tensor, gradients: Sequence[Tensor]) -> None:
    """Make a gradient not finite where the loss is not, so that all processes that average theirs learn of it."""
    if gradients:
        gradients[0].view(-1)[:1].add_(loss.detach() * 0)


def can_skip_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser's own kernels obey a flag on the device, as the fused ones of torch do.

    Not SGD's with momentum: left out at its first step, it takes memory that nobody has written for its momentum.
    """
    momentum = any(group.get("momentum") for group in optimizer.param_groups)
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False)) and not momentum


def skip_where(optimizer: torch.optim.Optimizer, nonfinite: Tensor) -> None:
    """Have the next `optimizer.step()` change nothing, its own state included, where `bad` is 1."""
    optimizer.found_inf, optimizer.grad_scale = nonfinite, None  # type: ignore[attr-defined]


class BufferSnapshot:
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

    def save(self) -> None:
        """As they are now."""
        self._before = [buffer.clone() for buffer in self._buffers]

    def restore(self, nonfinite: Tensor | None = None) -> None:
        """As they were, where `bad` is 1 (everywhere without it)."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before if nonfinite is None else torch.where(nonfinite > 0, before, buffer))


log = logging.getLogger("vae_lab")
MAX_DUMPS = 3  # steps that were left out: each file holds the weights and the optimiser's state
MAX_CONSECUTIVE = 100
ADVICE = (
    "Training stopped; the checkpoints hold the last good weights. Try a smaller optimizer.lr, "
    "optimizer.clip_norm=1, or trainer.precision=32-true."
)


class NonFiniteLoss(RunFailed):
    """A term of the loss, a gradient or a weight became infinite or not a number."""


class NonFinitePolicy:
    """Stops training at the first one, or counts them, keeps the first, and stops where nothing else comes."""

    def __init__(self, answer: OnNonFinite) -> None:
        self.stops = answer == "stop"
        self.num_skipped = 0
        self._at, self._in_a_row = -1, 0

    def handle(self, step: int, terms: dict[str, float], keep: Callable[[], Path]) -> None:
        """Step number `step` (from 0) changed nothing; `keep` writes it. Raises NonFiniteLoss where training ends."""
        values = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        told = f"{_first_nonfinite_term(terms)} at optimiser step {step + 1} ({values})."
        if self.stops:
            raise NonFiniteLoss(f"{told}\n{ADVICE}\n{_replay_hint(keep())}")
        self.num_skipped += 1
        if self.num_skipped <= MAX_DUMPS:
            log.warning("warning: left out: %s\n%s", told, _replay_hint(keep()))
        self._in_a_row = self._in_a_row + 1 if step == self._at + 1 else 1
        self._at = step
        if self._in_a_row == MAX_CONSECUTIVE:
            raise NonFiniteLoss(f"{told}\nSo were the {MAX_CONSECUTIVE - 1} steps before it, all left out. {ADVICE}")

    def state_dict(self) -> dict[str, int]:
        """What a resumed run has to know."""
        return {"num_skipped": self.num_skipped, "at": self._at, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """As it was."""
        self.num_skipped, self._at, self._in_a_row = state["num_skipped"], state["at"], state["in_a_row"]


def require_finite(parts: Sequence[nn.Module], step: int) -> None:
    """NonFiniteLoss if a weight is not: a finite gradient may have thrown it out of range."""
    weights = (named for part in parts for named in part.named_parameters())
    nonfinite = next((name for name, weight in weights if not weight.isfinite().all()), None)
    if nonfinite is not None:
        raise NonFiniteLoss(
            f"the weights {nonfinite} became infinite or not a number by optimiser step {step}.\n{ADVICE}"
        )


def _first_nonfinite_term(terms: dict[str, float]) -> str:
    # log_px and kl before the loss, which is made of them.
    named = [name for name in ("log_px", "kl", "loss") if not math.isfinite(terms[name])]
    return f"{named[0]} became {terms[named[0]]}" if named else "a gradient became infinite or not a number"


def _replay_hint(kept: Path) -> str:
    return f"The step is kept in {kept.name}; to look into it: python -m vae_lab.replay run={kept.parents[1]}"
