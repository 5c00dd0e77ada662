"""Steps that were not finite: what training does about one, and the file that holds all that it was made of."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_lab.checkpoints import load_checkpoint, write_checkpoint
from vae_lab.data.batches import Batch
from vae_lab.errors import UsageError
from vae_lab.interruption import RunFailed
from vae_lab.nonfinite import OnNonFinite
from vae_lab.random_streams import TRAIN, seed_noise
from vae_lab.steps import TrainingStep

log = logging.getLogger("vae_lab")
PATTERN = "nonfinite_step=*.ckpt"  # in the folder of the checkpoints
NUMERIC = ("precision", "channels_last", "compile", "matmul_precision")
MOST_KEPT = 3  # steps that were left out: each file holds the weights and the optimiser's state
MOST_IN_A_ROW = 100
ADVICE = (
    "Training stopped; the checkpoints hold the last good weights. Try a smaller optimizer.lr, "
    "optimizer.clip_norm=1, or trainer.precision=32-true."
)


class NonFiniteLoss(RunFailed):
    """A term of the loss, a gradient or a weight became infinite or not a number."""


class BadSteps:
    """Stops training at the first one, or counts them, keeps the first, and stops where nothing else comes."""

    def __init__(self, answer: OnNonFinite) -> None:
        self.stops = answer == "stop"
        self.num_left_out = 0
        self._at, self._in_a_row = -1, 0

    def answer(self, step: int, terms: dict[str, float], keep: Callable[[], Path]) -> None:
        """Step number `step` (from 0) changed nothing; `keep` writes it. Raises NonFiniteLoss where training ends."""
        values = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
        told = f"{_named(terms)} at optimiser step {step + 1} ({values})."
        if self.stops:
            raise NonFiniteLoss(f"{told}\n{ADVICE}\n{_way(keep())}")
        self.num_left_out += 1
        if self.num_left_out <= MOST_KEPT:
            log.warning("warning: left out: %s\n%s", told, _way(keep()))
        self._in_a_row = self._in_a_row + 1 if step == self._at + 1 else 1
        self._at = step
        if self._in_a_row == MOST_IN_A_ROW:
            raise NonFiniteLoss(f"{told}\nSo were the {MOST_IN_A_ROW - 1} steps before it, all left out. {ADVICE}")

    def state_dict(self) -> dict[str, int]:
        """What a resumed run has to know."""
        return {"num_left_out": self.num_left_out, "at": self._at, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """As it was."""
        self.num_left_out, self._at, self._in_a_row = state["num_left_out"], state["at"], state["in_a_row"]


def require_finite(parts: Sequence[nn.Module], step: int) -> None:
    """NonFiniteLoss if a weight is not: a finite gradient may have thrown it out of range."""
    weights = (named for part in parts for named in part.named_parameters())
    bad = next((name for name, weight in weights if not weight.isfinite().all()), None)
    if bad is not None:
        raise NonFiniteLoss(f"the weights {bad} became infinite or not a number by optimiser step {step}.\n{ADVICE}")


def _named(terms: dict[str, float]) -> str:
    # log_px and kl before the loss, which is made of them.
    named = [name for name in ("log_px", "kl", "loss") if not math.isfinite(terms[name])]
    return f"{named[0]} became {terms[named[0]]}" if named else "a gradient became infinite or not a number"


def _way(kept: Path) -> str:
    return f"The step is kept in {kept.name}; to look into it: python -m vae_lab.replay run={kept.parents[1]}"


class BadStep(NamedTuple):
    """Everything that one optimiser step is a function of, and what came of it."""

    step: int  # its number, from 0
    images: Tensor  # uint8, (N, C, H, W)
    labels: Tensor | None  # (N,)
    terms: dict[str, float]  # those of `term_names`: means over the images
    rank: int
    total_steps: int | None
    weights_of: int  # the number of the step that these weights are those before
    weights: dict[str, Tensor]  # of the model
    average: dict[str, Tensor]  # of the averaged weights; empty without
    objective: dict[str, Tensor]  # the state of what it is made of, critics for one
    optimizer: dict[str, Any]
    random_state: Tensor  # of the generator that the step draws from, as it begins
    image: dict[str, int]  # an ImageSpec
    num_images: int  # of the training set
    device: str
    trainer: dict[str, Any]  # the options of the trainer that the numbers depend on

    @property
    def name(self) -> str:
        """Of its file; steps are counted from 1 where people read them."""
        return f"nonfinite_step={self.step + 1:08d}" + (f"_rank={self.rank}" if self.rank else "") + ".ckpt"


def capture(
    step: TrainingStep,
    number: int,
    now: int,
    batch: Batch,
    terms: dict[str, float],
    num_images: int,
    trainer: Mapping[str, Any],
) -> BadStep:
    """Step `number` as it can be made again; `now`: the number of the step that would be next."""
    seed_noise(step.device, step.seed, TRAIN, step.rank, number)
    state = torch.cuda.get_rng_state(step.device) if step.device.type == "cuda" else torch.get_rng_state()
    return BadStep(
        step=number,
        images=batch.images.cpu(),
        labels=None if batch.labels is None else batch.labels.cpu(),
        terms=terms,
        rank=step.rank,
        total_steps=step.total_steps,
        weights_of=now,
        weights=step.model.state_dict(),
        average={} if step.average is None else step.average.model.state_dict(),
        objective=step.objective.state_dict(),
        optimizer=step.optimizer.state_dict(),
        random_state=state,
        image=dataclasses.asdict(step.model.image),
        num_images=num_images,
        device=str(step.device),
        trainer={name: trainer[name] for name in NUMERIC if name in trainer} | {"num_threads": torch.get_num_threads()},
    )


def save(bad: BadStep, folder: Path) -> Path:
    """Write it into the folder of the checkpoints; its path."""
    path = folder / bad.name
    write_checkpoint(bad._asdict(), path)
    return path


def read(path: Path) -> BadStep:
    """What `save` wrote. UsageError: damaged, or another kind of file."""
    content = load_checkpoint(path)
    if set(content) != set(BadStep._fields):
        raise UsageError(f"{path}: no step that was not finite, but a checkpoint; expected {PATTERN}")
    return BadStep(**content)
