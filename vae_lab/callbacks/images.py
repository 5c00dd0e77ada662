"""Pictures of the model during training, written as PNG files and to TensorBoard."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Unpack, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from vae_lab.callbacks.figure_context import EvaluatedModule, figure_context, require_pictures
from vae_lab.callbacks.forked_process import reason_not_to_fork
from vae_lab.callbacks.rendering import (
    HISTOGRAMS,
    HistogramValues,
    RenderedImage,
    SnapshotLabel,
    image_folder,
    log_graph,
    log_projector,
    precompute,
    render_animation,
    render_network,
    render_pictures,
    write_rendered,
)
from vae_lab.callbacks.workers import BackgroundError, ForkedWorkers, InProcessWorkers, Workers
from vae_lab.data.datamodule import datamodule_of
from vae_lab.figures.pictures import PICTURES
from vae_lab.figures.sizes import FigureSizes, SizeOptions
from vae_lab.utils.errors import UsageError
from vae_lab.utils.signals import Interrupted

SECONDS_AT_SIGINT = 20.0  # limit for pending pictures after Ctrl-C; a second Ctrl-C stops at once
SECONDS_AT_END = 3.0  # limit after any other stop: a scheduler kills a job that does not end within seconds


class ImageLogger(Callback):
    """Draws the model every few epochs or steps and at the end, as PNG in `<run>/images` and in TensorBoard.

    Uses the evaluated weights (EMA if on) in evaluation mode, and leaves training's random state unchanged.

    Args:
        every_n_epochs: epochs between pictures; None for never.
        every_n_steps: optimiser steps between pictures; None for never.
        pictures: names of the pictures to draw; None for all that the model has.
        animations: join the PNGs of samples (and of the grid of at most two latents) into a GIF at the end.
        projector: write the posterior means for TensorBoard's projector at the end.
        background: draw in forked worker processes, one core each at idle priority, while training continues; a fit
            still returns with every file written. "auto": if a single process trains on the CPU under Linux;
            otherwise, and with False, training waits for the pictures. True: raise if it is not possible.
        sizes: fields of `FigureSizes`.

    Raises:
        ValueError: an unknown picture or interpolation, or a number below 1; at the start of the fit, a picture that
            is not available for this model, or background=True where processes cannot be forked.
    """

    def __init__(
        self,
        *,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        pictures: Sequence[str] | None = None,
        animations: bool = True,
        projector: bool = True,
        background: Literal["auto"] | bool = "auto",
        **sizes: Unpack[SizeOptions],
    ) -> None:
        self.sizes = FigureSizes(**sizes)
        self.every_n_epochs = _interval("every_n_epochs", every_n_epochs)
        self.every_n_steps = _interval("every_n_steps", every_n_steps)
        self.pictures, self._asked_for = _known_pictures(pictures), pictures is not None
        self.animations, self.projector = animations, projector
        self.background = background
        self.seconds = 0.0  # that training waited for pictures; excluded from its throughput
        self.seconds_at_end = 0.0  # that the run waited for the last pictures
        self.stop_requested: Callable[[], bool] = lambda: False  # checked between pictures: True skips the rest
        self._drawn_at = -1  # step of the last pictures during training
        self._ended = False
        self._whole = SnapshotLabel.epoch(0, -1)  # the last complete epoch
        self._workers: Workers[RenderedImage | HistogramValues] = InProcessWorkers(lambda _: None)  # replaced in setup

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the workers. Raises UsageError if a requested picture or background=true is not possible."""
        if self._asked_for and stage == "fit":
            require_pictures(pl_module, self.sizes, self.pictures)
        unfit = reason_not_to_fork(trainer.strategy.root_device, trainer.world_size)
        if self.background is True and unfit:
            raise UsageError(f"callbacks.images.background=true: {unfit}. Use auto or false")
        chosen = InProcessWorkers if unfit or not self.background else ForkedWorkers
        self._workers = chosen(partial(write_rendered, trainer), self.stop_requested)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Draw if due. A call of `training_step` may be several optimiser steps, but ends where pictures are due."""
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self._drawn_at:
            self._draw(trainer, pl_module, SnapshotLabel.within(step))
        with self._timed():
            self._workers.poll()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw after the epoch's validation; not after a partial epoch."""
        finished, at = divmod(trainer.global_step, datamodule_of(trainer).steps_per_epoch)
        if at:
            return
        self._whole = SnapshotLabel.epoch(finished, trainer.global_step)
        last = finished == trainer.max_epochs  # drawn in on_train_end, when the cores are free
        if self.every_n_epochs and finished % self.every_n_epochs == 0 and not last:
            self._draw(trainer, pl_module, self._whole)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the last pictures, and those that are drawn only once; on_fit_end waits for them.

        The last checkpoint is saved in between, so a resumed run draws these again, but not the earlier pictures.
        """
        with self._timed(at_end=True):
            self._workers.drain()
            if self.stop_requested():
                self._workers.finish(SECONDS_AT_END)
            elif trainer.is_global_zero:
                self._draw_last(trainer, pl_module)
        self._ended = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the animations after the last pictures. A fit without steps left skips on_train_end, so call it."""
        if not self._ended:
            self.on_train_end(trainer, pl_module)
        num_latents = sum(
            math.prod(latent.shape) for latent in cast(EvaluatedModule, pl_module).evaluation_model.latents
        )
        animated = ("samples", "latent_grid") if num_latents <= 2 else ("samples",)
        with self._timed(at_end=True):
            self._workers.drain()
            wanted = trainer.is_global_zero and self.animations and not self.stop_requested()
            for what in animated if wanted else ():
                if what in self.pictures:
                    work = partial(render_animation, image_folder(trainer), what, trainer.global_step)
                    self._workers.start(f"joining {what}.gif", work, urgent=True)
            self._workers.drain()
            if self.stop_requested():
                self._workers.finish(SECONDS_AT_END)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Finish pending pictures within a time limit: a resumed run would not draw them."""
        if isinstance(exception, BackgroundError) or not isinstance(exception, Exception):
            self._workers.stop()
        else:
            self.finish(exception.signum if isinstance(exception, Interrupted) else None)

    def finish(self, signum: int | None) -> None:
        """Finish pending pictures within a time limit that depends on the signal; skip the rest."""
        self._workers.finish(SECONDS_AT_SIGINT if signum == signal.SIGINT else SECONDS_AT_END)

    def state_dict(self) -> dict[str, Any]:
        return {"drawn_at": self._drawn_at, "whole": tuple(self._whole)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._drawn_at, self._whole = state_dict["drawn_at"], SnapshotLabel(*state_dict["whole"])

    @property
    def warnings(self) -> list[str]:
        """A warning that names the skipped pictures, if any."""
        skipped = ", ".join(dict.fromkeys(self._workers.skipped))
        return [f"pictures were skipped: {skipped}"] if skipped else []

    @property
    def busy(self) -> bool:
        """Whether pictures are being drawn in the background."""
        return self._workers.busy

    def wait(self) -> None:
        """Wait for the pending pictures."""
        with self._timed():
            self._workers.drain()

    def _draw(self, trainer: Trainer, pl_module: LightningModule, label: SnapshotLabel) -> None:
        if not trainer.is_global_zero:
            return

        def work() -> Iterator[RenderedImage | HistogramValues]:
            with figure_context(trainer, pl_module, self.sizes, label.title) as context:
                yield from render_pictures(context, (*self.pictures, HISTOGRAMS), label)

        with self._timed():
            self._workers.start(f"drawing {label.title}", work)
        self._drawn_at = label.step

    def _draw_last(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last pictures on several cores; graph and projector are written here, in the parent process."""
        step = trainer.global_step
        label = self._whole if self._whole.step == step else SnapshotLabel.within(step)
        start = partial(self._workers.start, urgent=True)
        with figure_context(trainer, pl_module, self.sizes, label.title) as context:
            if step != self._drawn_at:
                precompute(context)
                for share in _shares((*self.pictures, HISTOGRAMS)):
                    start(f"drawing {label.title}", partial(render_pictures, context, share, label))
            if len(context.examples.x):
                start("drawing the network", partial(render_network, context, step))
                log_graph(trainer, context)
                if self.projector:
                    log_projector(trainer, context)

    @contextmanager
    def _timed(self, at_end: bool = False) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - start
            if at_end:
                self.seconds_at_end += passed
            else:
                self.seconds += passed


def image_loggers(trainer: Trainer) -> list[ImageLogger]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, ImageLogger)]


def _interval(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ValueError(f"callbacks.images.{name} is {value}; expected at least 1, or null for never")
    return value


def _known_pictures(pictures: Sequence[str] | None) -> tuple[str, ...]:
    for what in pictures or ():
        if what not in PICTURES:
            raise ValueError(f"callbacks.images.pictures has {what!r}; expected one of {', '.join(sorted(PICTURES))}")
    return tuple(PICTURES if pictures is None else pictures)


def _shares(names: Sequence[str]) -> list[Sequence[str]]:
    """The names split over the cores that this process may use, at most three."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    count = min(processors, 3)
    return [names[first::count] for first in range(count)]
