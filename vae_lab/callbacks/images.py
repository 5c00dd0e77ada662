"""When pictures of the model are drawn during training, and where they go: PNG files and TensorBoard."""

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

SECONDS_AT_SIGINT = 20.0  # for the pictures that are due when somebody stops training, who may press Ctrl-C again
SECONDS_AT_END = 3.0  # when anything else does: a scheduler kills who does not end within seconds


class ImageLogger(Callback):
    """Draws the model every few epochs or steps and at the end, as PNG in `<run>/images` and in TensorBoard.

    Shows the weights that are evaluated (EMA if on), in eval mode, and leaves training's random state alone.

    Args:
        every_n_epochs: finished epochs between pictures; None for none.
        every_n_steps: optimiser steps between pictures; None for none.
        pictures: the names of those to draw; None for all that the model has.
        animations: join the PNGs of samples (and the grid of two latents) into a GIF at the end.
        projector: write the posterior means for TensorBoard's projector at the end.
        background: draw in a forked copy of the process, one processor at a low priority, while training goes
            on; a fit still returns with every file written. "auto": where one process trains on the CPU of a Linux
            machine; else, and with False, training waits for the pictures. True: refuse to train where it cannot be.
        sizes: how much each picture shows, as in `FigureSizes`.

    Raises:
        ValueError: an unknown picture or interpolation, or a number below 1; at the start of the fit, a picture that
            this model cannot have, or a background that cannot be.
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
        self.seconds = 0.0  # that training waited for pictures, so that its speed can be told without them
        self.seconds_at_end = 0.0  # that the run waited for its last ones
        self.stop_requested: Callable[[], bool] = lambda: False  # asked between pictures: True ends them
        self._drawn_at = -1  # the step last drawn, while training
        self._ended = False
        self._whole = SnapshotLabel.epoch(0, -1)  # the last whole epoch
        self._workers: Workers[RenderedImage | HistogramValues] = InProcessWorkers(
            lambda _: None
        )  # until it is known who can draw

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose who draws. Raises UsageError where the background or a picture was asked for and cannot be."""
        if self._asked_for and stage == "fit":
            require_pictures(pl_module, self.sizes, self.pictures)
        unfit = reason_not_to_fork(trainer.strategy.root_device, trainer.world_size)
        if self.background is True and unfit:
            raise UsageError(f"callbacks.images.background=true: {unfit}. Use auto or false")
        chosen = InProcessWorkers if unfit or not self.background else ForkedWorkers
        self._workers = chosen(partial(write_rendered, trainer), self.stop_requested)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """A call of training_step may be several optimiser steps; calls are cut where pictures are due."""
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self._drawn_at:
            self._draw(trainer, pl_module, SnapshotLabel.within(step))
        with self._timed():
            self._workers.poll()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the epoch's validation, where there is one."""
        finished, at = divmod(trainer.global_step, datamodule_of(trainer).steps_per_epoch)
        if at:
            return
        self._whole = SnapshotLabel.epoch(finished, trainer.global_step)
        last = finished == trainer.max_epochs  # drawn at the end, where nothing goes on beside it
        if self.every_n_epochs and finished % self.every_n_epochs == 0 and not last:
            self._draw(trainer, pl_module, self._whole)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A last time, and what is only worth its time once; it is waited for in on_fit_end.

        The last checkpoint comes between: it knows the earlier pictures, and these are drawn again by who resumes it.
        """
        with self._timed(at_end=True):
            self._workers.drain()
            if self.stop_requested():
                self._workers.finish(SECONDS_AT_END)
            elif trainer.is_global_zero:
                self._draw_last(trainer, pl_module)
        self._ended = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Animations of all PNGs there are, once the last is; after a fit with nothing left to train, the last too."""
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
        """What was due is drawn if it takes a moment; a resumed run would not draw it."""
        if isinstance(exception, BackgroundError) or not isinstance(exception, Exception):
            self._workers.stop()
        else:
            self.finish(exception.signum if isinstance(exception, Interrupted) else None)

    def finish(self, signum: int | None) -> None:
        """Draw what is due in a moment, whose length depends on what ends training; leave out the rest."""
        self._workers.finish(SECONDS_AT_SIGINT if signum == signal.SIGINT else SECONDS_AT_END)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {"drawn_at": self._drawn_at, "whole": tuple(self._whole)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was."""
        self._drawn_at, self._whole = state_dict["drawn_at"], SnapshotLabel(*state_dict["whole"])

    @property
    def warnings(self) -> list[str]:
        """The pictures that are not there."""
        skipped = ", ".join(dict.fromkeys(self._workers.skipped))
        return [f"pictures were left out: {skipped}"] if skipped else []

    @property
    def busy(self) -> bool:
        """Whether pictures are being drawn beside training."""
        return self._workers.busy

    def wait(self) -> None:
        """Until they are there."""
        with self._timed():
            self._workers.drain()

    def _draw(self, trainer: Trainer, pl_module: LightningModule, label: SnapshotLabel) -> None:
        """Every picture of this moment, one file and one summary each."""
        if not trainer.is_global_zero:
            return

        def work() -> Iterator[RenderedImage | HistogramValues]:
            with figure_context(trainer, pl_module, self.sizes, label.title) as context:
                yield from render_pictures(context, (*self.pictures, HISTOGRAMS), label)

        with self._timed():
            self._workers.start(f"drawing {label.title}", work)
        self._drawn_at = label.step

    def _draw_last(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last pictures on as many processors as there are, and meanwhile here what copies cannot do."""
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
    """The callbacks that draw."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, ImageLogger)]


def _interval(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ValueError(f"callbacks.images.{name} is {value}; it is at least 1, or null for never")
    return value


def _known_pictures(pictures: Sequence[str] | None) -> tuple[str, ...]:
    for what in pictures or ():
        if what not in PICTURES:
            raise ValueError(f"callbacks.images.pictures has {what!r}; there are {', '.join(sorted(PICTURES))}")
    return tuple(PICTURES if pictures is None else pictures)


def _shares(names: Sequence[str]) -> list[Sequence[str]]:
    """Dealt out to the processors that this process may use, to three at most."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    count = min(processors, 3)
    return [names[first::count] for first in range(count)]
