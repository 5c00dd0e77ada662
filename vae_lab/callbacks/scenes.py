"""What a picture of a training run is drawn from: its evaluated model, and images of the first split that has any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from vae_lab.figures.scene import Examples, Model, Scene, Sizes, looking_at

if TYPE_CHECKING:
    import torch

SPLITS: tuple[Literal["test", "val", "train"], ...] = ("test", "val", "train")
MOST_VALUES = 2**25  # pixels times channels held for the scatter: 128 MiB


class Shown(Protocol):
    """What the pictures ask of an experiment."""

    evaluation_model: Model
    kl_per_dim: Tensor | None  # (D,), of the last validation

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        ...


class ShownData(Protocol):
    """What they ask of the data."""

    class_names: tuple[str, ...]

    def examples(self, split: Literal["train", "val", "test"], n: int, /) -> tuple[Tensor, Tensor | None]:
        """At most n images in [0, 1] and their labels."""
        ...


@contextmanager
def scene_of(trainer: Trainer, pl_module: LightningModule, sizes: Sizes, when: str) -> Iterator[Scene]:
    """The model as it is now, with images to look at it with; training goes on as if nobody had looked."""
    shown = cast(Shown, pl_module)
    examples = _examples(cast(ShownData, cast(Any, trainer).datamodule), sizes)
    with looking_at(shown.evaluation_model, shown.device, sizes.seed):
        yield Scene(shown.evaluation_model, shown.device, examples, sizes, when, shown.kl_per_dim)


def _examples(data: ShownData, sizes: Sizes) -> Examples:
    """From the first split that has any, no more than fit in memory."""
    for split in SPLITS:
        first, _ = data.examples(split, 1)
        if len(first):
            most = max(1, MOST_VALUES // first.numel())
            x, labels = data.examples(split, min(max(sizes.num_scatter, sizes.num_images), most))
            return Examples(x.cpu(), None if labels is None else labels.cpu(), data.class_names, split)
    return Examples(first)
