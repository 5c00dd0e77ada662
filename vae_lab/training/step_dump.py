"""A step that was not finite, with everything it is a function of, in a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_lab.data.batches import Batch
from vae_lab.runs.checkpoint_io import load_checkpoint, write_checkpoint
from vae_lab.training.step import TrainingStep
from vae_lab.utils.errors import UsageError
from vae_lab.utils.rng import TRAIN, seed_noise

DUMP_PATTERN = "nonfinite_step=*.ckpt"  # in the folder of the checkpoints
NUMERIC = ("precision", "channels_last", "compile", "matmul_precision")


class StepDump(NamedTuple):
    """Everything that one optimiser step is a function of, and what came of it."""

    step: int  # its number, from 0
    images: Tensor  # uint8, (N, C, H, W)
    labels: Tensor | None  # (N,)
    terms: dict[str, float]  # those of `term_names`: means over the images
    rank: int
    total_steps: int | None
    weights_step: int  # the number of the step that these weights are those before
    weights: dict[str, Tensor]  # of the model
    average: dict[str, Tensor]  # of the averaged weights; empty without
    objective: dict[str, Tensor]  # the state of what it is made of, discriminators for one
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


def capture_step(
    step: TrainingStep,
    number: int,
    now: int,
    batch: Batch,
    terms: dict[str, float],
    num_images: int,
    trainer: Mapping[str, Any],
) -> StepDump:
    """Step `number` as it can be made again; `now`: the number of the step that would be next."""
    seed_noise(step.device, step.seed, TRAIN, step.rank, number)
    state = torch.cuda.get_rng_state(step.device) if step.device.type == "cuda" else torch.get_rng_state()
    return StepDump(
        step=number,
        images=batch.images.cpu(),
        labels=None if batch.labels is None else batch.labels.cpu(),
        terms=terms,
        rank=step.rank,
        total_steps=step.total_steps,
        weights_step=now,
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


def write_step_dump(dump: StepDump, folder: Path) -> Path:
    """Write it into the folder of the checkpoints; its path."""
    path = folder / dump.name
    write_checkpoint(dump._asdict(), path)
    return path


def read_step_dump(path: Path) -> StepDump:
    """What `write_step_dump` wrote. UsageError: damaged, or another kind of file."""
    content = load_checkpoint(path)
    if set(content) != set(StepDump._fields):
        raise UsageError(f"{path}: no step that was not finite, but a checkpoint; expected {DUMP_PATTERN}")
    return StepDump(**content)
