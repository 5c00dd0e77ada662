"""Pictures of the model: bare grids during training, titled figures once at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Unpack

from lightning.pytorch import Callback, Trainer

from vae_lab.callbacks.figure_context import figure_context, require_pictures
from vae_lab.callbacks.rendering import (
    SnapshotLabel,
    log_animation,
    log_figure,
    log_grid,
    log_histograms,
    log_network,
    log_projector,
)
from vae_lab.data.datamodule import datamodule_of
from vae_lab.figures.context import FigureContext, FigureSizes, SizeOptions
from vae_lab.figures.grids import GRIDS
from vae_lab.figures.pictures import PICTURES
from vae_lab.figures.requirements import available_pictures

NUM_EXAMPLES = 256  # images encoded during training: a latent grid estimates the range of its axes from them


class ImageLogger(Callback):
    """Draws the model every few epochs or steps and at the end, as PNG in `<run>/images` and in TensorBoard.

    During training: bare grids of samples, reconstructions and, with at most two latents, the latent space. At the end:
    all pictures, with titles and axes. Uses the evaluated weights (EMA if on) in evaluation mode, and leaves
    training's random state unchanged. The end is skipped, with a warning, once the run is asked to stop.

    Args:
        every_n_epochs: epochs between grids; None for never.
        every_n_steps: optimiser steps between grids; None for never.
        pictures: names of the pictures to draw; None for all that the model has.
        animations: join the grids of samples (and of the latent space) into a GIF at the end.
        projector: write the posterior means for TensorBoard's projector at the end.
        sizes: fields of `FigureSizes`.

    Raises:
        ValueError: an unknown picture or interpolation, or a number below 1; at the start of the fit, a picture that
            is not available for this model.
    """

    def __init__(
        self,
        *,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        pictures: Sequence[str] | None = None,
        animations: bool = True,
        projector: bool = True,
        **sizes: Unpack[SizeOptions],
    ) -> None:
        self.sizes = FigureSizes(**sizes)
        self.every_n_epochs = _interval("every_n_epochs", every_n_epochs)
        self.every_n_steps = _interval("every_n_steps", every_n_steps)
        self.pictures, self._asked_for = _known_pictures(pictures), pictures is not None
        self.animations, self.projector = animations, projector
        self._drawn_at = -1  # step of the last grids

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Raises UsageError if a requested picture is not available."""
        if self._asked_for and stage == "fit":
            require_pictures(pl_module, self.sizes, self.pictures)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Draw if due. A call of `training_step` may be several optimiser steps, but ends where pictures are due."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._draw_grids(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw after the epoch's validation; not after a partial epoch."""
        finished, at = divmod(trainer.global_step, datamodule_of(trainer).steps_per_epoch)
        if self.every_n_epochs and not at and finished % self.every_n_epochs == 0:
            self._draw_grids(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the last grids and the figures. Training is saved by now: a resumed run draws them again."""
        self._draw_grids(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        label = SnapshotLabel.of(trainer)
        with (
            pl_module.stopwatch.timed("last_pictures"),
            figure_context(trainer, pl_module, self.sizes, label.title, self.sizes.num_scatter) as context,
        ):
            jobs = self._last_pictures(trainer, context)
            skipped = []
            for name, draw in jobs.items():
                if pl_module.stop_requested():
                    skipped.append(name)
                else:
                    draw()
        if skipped:
            pl_module.caveats["pictures"] = [f"pictures were skipped: {', '.join(skipped)}"]

    def _draw_grids(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the bare grids and the histograms, once a step."""
        step, label = trainer.global_step, SnapshotLabel.of(trainer)
        if not trainer.is_global_zero or step == self._drawn_at:
            return
        self._drawn_at = step
        with (
            pl_module.stopwatch.timed("pictures"),
            figure_context(trainer, pl_module, self.sizes, label.title, NUM_EXAMPLES) as context,
        ):
            for what in self._grids(context):
                log_grid(trainer, what, context)
            log_histograms(trainer, context)

    def _grids(self, context: FigureContext) -> list[str]:
        """Names of the bare grids of this model."""
        planar = sum(math.prod(latent.shape) for latent in context.model.latents) <= 2
        able = available_pictures(context)
        return [what for what in GRIDS if what in self.pictures and what in able and (what != "latent_grid" or planar)]

    def _last_pictures(self, trainer: Trainer, context: FigureContext) -> dict[str, Callable[[], None]]:
        """Name -> function that draws; in order."""
        jobs: dict[str, Callable[[], None]] = {}
        if self.animations:
            moving = [what for what in self._grids(context) if what != "reconstructions"]
            jobs |= {f"{what}.gif": partial(log_animation, trainer, what) for what in moving}
        shown = [what for what in available_pictures(context) if what in self.pictures]
        jobs |= {what: partial(log_figure, trainer, what, context) for what in shown}
        jobs["network"] = partial(log_network, trainer, context)
        if self.projector:
            jobs["projector"] = partial(log_projector, trainer, context)
        return jobs


def _interval(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ValueError(f"callbacks.images.{name} is {value}; expected at least 1, or null for never")
    return value


def _known_pictures(pictures: Sequence[str] | None) -> tuple[str, ...]:
    for what in pictures or ():
        if what not in PICTURES:
            raise ValueError(f"callbacks.images.pictures has {what!r}; expected one of {', '.join(sorted(PICTURES))}")
    return tuple(PICTURES if pictures is None else pictures)
