"""Renders the pictures of a snapshot into picklable values, and writes them to files and TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from vae_lab.callbacks.tensorboard import add_encoded_image, add_model_graph, add_projector, writers
from vae_lab.figures.canvas import render
from vae_lab.figures.context import FigureContext
from vae_lab.figures.encoding import encode_gif, encode_png, find_frames
from vae_lab.figures.network import autoencoder
from vae_lab.figures.pictures import PICTURES, network_drawing
from vae_lab.figures.requirements import Requirement, available_pictures, satisfied_requirements
from vae_lab.utils.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


HISTOGRAMS = "histograms"  # listed among the picture names to draw


class SnapshotLabel(NamedTuple):
    """A point in training, for file names and titles."""

    suffix: str  # "epoch=0007" or "step=00001000"
    title: str  # "epoch 7"
    step: int

    @classmethod
    def epoch(cls, finished: int, step: int) -> SnapshotLabel:
        """The end of an epoch; finished: number of complete epochs."""
        return cls(f"epoch={finished:04d}", f"epoch {finished}", step)

    @classmethod
    def within(cls, step: int) -> SnapshotLabel:
        """A step within an epoch."""
        return cls(f"step={step:08d}", f"step {step:,}", step)


class RenderedImage(NamedTuple):
    """An encoded image (PNG or GIF), for a file and for TensorBoard."""

    name: str  # of the file
    tag: str
    data: bytes
    size: tuple[int, int]  # width and height
    step: int


class HistogramValues(NamedTuple):
    """Values of a TensorBoard histogram."""

    tag: str
    values: NDArray[np.float32]
    step: int


def render_pictures(
    context: FigureContext, names: Sequence[str], label: SnapshotLabel
) -> Iterator[RenderedImage | HistogramValues]:
    """Render the named pictures that are available for the context; histograms too if named."""
    precompute(context)
    for what in available_pictures(context):
        if what in names:
            yield _rendered_image(what, f"{what}_{label.suffix}.png", PICTURES[what](context), label.step)
    if HISTOGRAMS in names:
        yield from _histograms(context, label.step)


def precompute(context: FigureContext) -> None:
    """Fill the caches of the context before the fork, so that no worker process repeats the computation."""
    available_pictures(context)


def render_network(context: FigureContext, step: int) -> Iterator[RenderedImage]:
    """The network diagram, which does not change in training; for models with one layer of latents."""
    if Requirement.ONE_LAYER in satisfied_requirements(context):
        yield _rendered_image("network", "network.png", network_drawing(context), step)


def render_animation(folder: Path, what: str, step: int) -> Iterator[RenderedImage]:
    """A GIF of all PNGs of a picture, including those from before a resume."""
    frames = find_frames(folder, what)
    if frames:
        data, size = encode_gif(frames)
        yield RenderedImage(f"{what}.gif", f"images/{what}.gif", data, size, step)


def _rendered_image(what: str, name: str, figure: Figure, step: int) -> RenderedImage:
    pixels = render(figure)
    height, width = pixels.shape[:2]
    return RenderedImage(name, f"images/{what}", encode_png(pixels, step), (width, height), step)


def _histograms(context: FigureContext, step: int) -> Iterator[HistogramValues]:
    able, shown = satisfied_requirements(context), {}
    if Requirement.KL in able:
        shown["latents/kl_per_dimension"] = context.space.kl
    if {Requirement.IMAGE, Requirement.POINTS} <= able:
        shown["latents/aggregate_posterior"] = context.space.latents.sample
    for tag, values in shown.items():
        if values is not None and values.isfinite().all():  # TensorBoard would raise on those of a diverging run
            yield HistogramValues(tag, values.numpy(), step)


def image_folder(trainer: Trainer) -> Path:
    """`images` in the run directory."""
    return Path(trainer.default_root_dir) / "images"


def write_rendered(trainer: Trainer, drawn: RenderedImage | HistogramValues) -> None:
    """Write an image to the folder and to TensorBoard, a histogram to TensorBoard."""
    if isinstance(drawn, RenderedImage):
        write_atomically(image_folder(trainer) / drawn.name, drawn.data, flush=False)
    for writer in writers(trainer):
        if isinstance(drawn, RenderedImage):
            add_encoded_image(writer, drawn.tag, drawn.data, drawn.size, drawn.step)
        else:
            writer.add_histogram(drawn.tag, drawn.values, drawn.step)


def log_graph(trainer: Trainer, context: FigureContext) -> None:
    """Write the graph of the networks to TensorBoard; for models with one layer of latents."""
    if Requirement.ONE_LAYER not in satisfied_requirements(context):
        return
    first = context.examples.x[:1].to(context.device)
    module, seen = autoencoder(context.space.model, first, context.on_device(context.labels(1)))
    for writer in writers(trainer):
        add_model_graph(writer, module, seen)


def log_projector(trainer: Trainer, context: FigureContext) -> None:
    """Write the posterior means of the examples to TensorBoard's projector, if they are vectors."""
    if Requirement.VECTOR not in satisfied_requirements(context):
        return
    labels = context.examples.labels
    names = None if labels is None else [context.examples.class_name(label) for label in labels.tolist()]
    for writer in writers(trainer):
        add_projector(writer, context.space.latents.centre, context.examples.x, names, trainer.global_step)
