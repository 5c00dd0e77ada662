"""When pictures of the model are drawn during training, and where they go: PNG files and TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from vae_lab.callbacks.tensorboard import add_encoded_image, add_model_graph, add_projector, writers
from vae_lab.figures.canvas import render
from vae_lab.figures.files import encode_gif, encode_png, frames_of
from vae_lab.figures.network import autoencoder
from vae_lab.figures.pictures import PICTURES, drawable, network_drawing
from vae_lab.figures.scene import Examples, Model, Scene, Sizes, looking_at
from vae_lab.files import write_whole

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

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


class Moment(NamedTuple):
    """A point in training, as file names and titles give it."""

    suffix: str  # "epoch=0007" or "step=00001000"
    words: str  # "epoch 7"
    step: int

    @classmethod
    def epoch(cls, finished: int, step: int) -> Moment:
        """After so many whole epochs."""
        return cls(f"epoch={finished:04d}", f"epoch {finished}", step)

    @classmethod
    def within(cls, step: int) -> Moment:
        """Somewhere in an epoch."""
        return cls(f"step={step:08d}", f"step {step:,}", step)


class ImageLogger(Callback):
    """Draws the model every few epochs or steps and at the end, as PNG in `<run>/images` and in TensorBoard.

    Shows the weights that are evaluated (EMA if on), in eval mode, and leaves training's random state alone.

    Args:
        every_n_epochs: finished epochs between pictures; None for none.
        every_n_steps: optimiser steps between pictures; None for none.
        pictures: the names of those to draw; None for all.
        num_images: pairs of original and reconstruction.
        num_samples: samples from the prior, the same latents every time.
        grid_size: images along each side of the latent grid; fewer where they would exceed 1,400 pixels.
        num_traversed: dimensions traversed, the most active first.
        num_steps: images along a traversal or an interpolation.
        num_pairs: interpolations.
        num_scatter: images in the latent scatter, the aggregate posterior and the projector.
        interpolation: "spherical" or "linear".
        animations: join the PNGs of samples (and the grid of two latents) into a GIF at the end.
        projector: write the posterior means for TensorBoard's projector at the end.
        seed: of the latents of the samples.

    Raises:
        ValueError: an unknown picture or interpolation, or a number below 1.
    """

    def __init__(
        self,
        *,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        pictures: Sequence[str] | None = None,
        num_images: int = 16,
        num_samples: int = 64,
        grid_size: int = 20,
        num_traversed: int = 32,
        num_steps: int = 11,
        num_pairs: int = 8,
        num_scatter: int = 2000,
        interpolation: Literal["spherical", "linear"] = "spherical",
        animations: bool = True,
        projector: bool = True,
        seed: int = 0,
    ) -> None:
        self.sizes = Sizes(
            num_images=num_images,
            num_samples=num_samples,
            grid_size=grid_size,
            num_traversed=num_traversed,
            num_steps=num_steps,
            num_pairs=num_pairs,
            num_scatter=num_scatter,
            interpolation=interpolation,
            seed=seed,
        )
        self.every_n_epochs = _interval("every_n_epochs", every_n_epochs)
        self.every_n_steps = _interval("every_n_steps", every_n_steps)
        self.pictures = _known_pictures(pictures)
        self.animations, self.projector = animations, projector
        self.seconds = 0.0  # spent on pictures, so that the speed of training can be told without them
        self.interrupted: Callable[[], bool] = lambda: False  # asked between pictures: True ends them
        self._drawn_at = -1  # the step last drawn
        self._whole = Moment.epoch(0, -1)  # the last whole epoch

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """A call of training_step may be several optimiser steps; calls are cut where pictures are due."""
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self._drawn_at:
            self._draw(trainer, pl_module, Moment.within(step))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the epoch's validation, where there is one."""
        if _stopped_within_epoch(trainer):
            return
        self._whole = Moment.epoch(trainer.current_epoch + 1, trainer.global_step)
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._draw(trainer, pl_module, self._whole)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A last time, and what is only worth its time once."""
        step = trainer.global_step
        if step != self._drawn_at:
            self._draw(trainer, pl_module, self._whole if self._whole.step == step else Moment.within(step))
        if trainer.is_global_zero and not self.interrupted():
            with self._timed():
                self._finish(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, moment: Moment) -> None:
        """Every picture of this moment, one file and one summary each."""
        if not trainer.is_global_zero:
            return
        with self._timed(), self._scene(trainer, pl_module, moment.words) as scene:
            for what in drawable(scene):
                if self.interrupted():
                    return
                if what in self.pictures:
                    _show(trainer, what, moment, PICTURES[what](scene))
            _log_histograms(trainer, scene)
        self._drawn_at = moment.step

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Animations of all PNGs there are, those before a resume too; the network, the projector."""
        latent_dim = cast(Shown, pl_module).evaluation_model.latent_shape[0]
        for what in ("samples", "latent_grid") if latent_dim <= 2 else ("samples",):
            if self.animations and what in self.pictures:
                _animate(trainer, what)
        with self._scene(trainer, pl_module, "") as scene:
            if len(scene.examples.x):
                _show(trainer, "network", None, network_drawing(scene))
                _log_graph(trainer, scene)
                if self.projector:
                    _log_projector(trainer, scene)

    @contextmanager
    def _scene(self, trainer: Trainer, pl_module: LightningModule, when: str) -> Iterator[Scene]:
        shown = cast(Shown, pl_module)
        examples = _examples(cast(ShownData, cast(Any, trainer).datamodule), self.sizes)
        with looking_at(shown.evaluation_model, shown.device, self.sizes.seed):
            yield Scene(shown.evaluation_model, shown.device, examples, self.sizes, when, shown.kl_per_dim)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


def _interval(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ValueError(f"callbacks.images.{name} is {value}; it is at least 1, or null for never")
    return value


def _known_pictures(pictures: Sequence[str] | None) -> tuple[str, ...]:
    for what in pictures or ():
        if what not in PICTURES:
            raise ValueError(f"callbacks.images.pictures has {what!r}; there are {', '.join(sorted(PICTURES))}")
    return tuple(PICTURES if pictures is None else pictures)


def _stopped_within_epoch(trainer: Trainer) -> bool:
    """Lightning also ends an epoch that max_steps or a stop cut short."""
    out_of_steps = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return (out_of_steps or trainer.should_stop) and not trainer.is_last_batch


def _examples(data: ShownData, sizes: Sizes) -> Examples:
    """From the first split that has any, no more than fit in memory."""
    for split in SPLITS:
        first, _ = data.examples(split, 1)
        if len(first):
            most = max(1, MOST_VALUES // first.numel())
            x, labels = data.examples(split, min(max(sizes.num_scatter, sizes.num_images), most))
            return Examples(x.cpu(), None if labels is None else labels.cpu(), data.class_names, split)
    return Examples(first)


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir) / "images"


def _show(trainer: Trainer, what: str, moment: Moment | None, figure: Figure) -> None:
    """The same PNG in the folder and in TensorBoard; without a moment it shows what does not change."""
    pixels, step = render(figure), trainer.global_step
    data, (height, width) = encode_png(pixels, step), pixels.shape[:2]
    write_whole(_folder(trainer) / (f"{what}_{moment.suffix}.png" if moment else f"{what}.png"), data)
    for writer in writers(trainer):
        add_encoded_image(writer, f"images/{what}", data, (width, height), step)


def _animate(trainer: Trainer, what: str) -> None:
    frames = frames_of(_folder(trainer), what)
    if not frames:
        return
    data, size = encode_gif(frames)
    write_whole(_folder(trainer) / f"{what}.gif", data)
    for writer in writers(trainer):
        add_encoded_image(writer, f"images/{what}.gif", data, size, trainer.global_step)


def _log_histograms(trainer: Trainer, scene: Scene) -> None:
    histograms = {"latents/kl_per_dimension": scene.kl}
    if len(scene.examples.x):
        histograms["latents/aggregate_posterior"] = scene.posterior[2]
    for writer in writers(trainer):
        for tag, values in histograms.items():
            if values.isfinite().all():  # a diverging run's are not, and TensorBoard would end it
                writer.add_histogram(tag, values, trainer.global_step)


def _log_graph(trainer: Trainer, scene: Scene) -> None:
    module = autoencoder(scene.model.encoder, scene.model.decoder, scene.latent_dim)
    for writer in writers(trainer):
        add_model_graph(writer, module, scene.examples.x[:1].to(scene.device))


def _log_projector(trainer: Trainer, scene: Scene) -> None:
    labels, names = scene.examples.labels, scene.examples.class_names
    words = None
    if labels is not None:
        words = [names[label] if label < len(names) else str(label) for label in labels.tolist()]
    for writer in writers(trainer):
        add_projector(writer, scene.posterior[0], scene.examples.x, words, trainer.global_step)
