"""Dump of a non-finite step: a file with everything the step is a function of."""

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

DUMP_PATTERN = "nonfinite_step=*.ckpt"  # in the checkpoint folder
NUMERIC = ("precision", "channels_last", "compile", "matmul_precision")


class StepDump(NamedTuple):
    """All inputs of one optimiser step, and its resulting terms."""

    step: int  # step number, from 0
    images: Tensor  # uint8, (N, C, H, W)
    labels: Tensor | None  # (N,)
    terms: dict[str, float]  # named by `term_names`: means over the images
    rank: int
    total_steps: int | None
    weights_step: int  # number of the step that these weights precede
    weights: dict[str, Tensor]  # of the model
    average: dict[str, Tensor]  # the averaged weights; empty without averaging
    objective: dict[str, Tensor]  # state_dict, including discriminators
    optimizer: dict[str, Any]
    random_state: Tensor  # of the generator, at the start of the step
    image: dict[str, int]  # an ImageSpec
    num_images: int  # in the training set
    device: str
    trainer: dict[str, Any]  # trainer options that affect the result

    @property
    def name(self) -> str:
        """The file name; steps are counted from 1 there, as in messages."""
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
    """Step `number` for replay. now: number of the next step, which the current weights precede."""
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
    """Write a dump into the checkpoint folder; returns its path."""
    path = folder / dump.name
    write_checkpoint(dump._asdict(), path)
    return path


def read_step_dump(path: Path) -> StepDump:
    """Read a dump. UsageError: damaged, or another kind of file."""
    content = load_checkpoint(path)
    if set(content) != set(StepDump._fields):
        raise UsageError(f"{path}: found another checkpoint, expected the dump of a non-finite step ({DUMP_PATTERN})")
    return StepDump(**content)
