"""What the pictures of one moment come to, as values that may come from another process; and where those go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from vae_lab.callbacks.tensorboard import add_encoded_image, add_model_graph, add_projector, writers
from vae_lab.figures.canvas import render
from vae_lab.figures.context import Scene
from vae_lab.figures.encoding import encode_gif, encode_png, frames_of
from vae_lab.figures.network import autoencoder
from vae_lab.figures.pictures import PICTURES, network_drawing
from vae_lab.figures.requirements import Need, abilities, drawable
from vae_lab.utils.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


HISTOGRAMS = "histograms"  # named like a picture where it is said what to draw


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


class Picture(NamedTuple):
    """An image file, and the same bytes in TensorBoard."""

    name: str  # of the file
    tag: str
    data: bytes
    size: tuple[int, int]  # width and height
    step: int


class Values(NamedTuple):
    """A histogram."""

    tag: str
    values: NDArray[np.float32]
    step: int


def draw(scene: Scene, names: Sequence[str], moment: Moment) -> Iterator[Picture | Values]:
    """Those of the pictures named that the scene suffices for; histograms where they are named."""
    see(scene)
    for what in drawable(scene):
        if what in names:
            yield _picture(what, f"{what}_{moment.suffix}.png", PICTURES[what](scene), moment.step)
    if HISTOGRAMS in names:
        yield from _histograms(scene, moment.step)


def see(scene: Scene) -> None:
    """Look before the processes part that draw, so that each need not look again."""
    drawable(scene)


def network(scene: Scene, step: int) -> Iterator[Picture]:
    """What does not change, of a model that is one encoder and one decoder."""
    if Need.ONE_LAYER in abilities(scene):
        yield _picture("network", "network.png", network_drawing(scene), step)


def animation(folder: Path, what: str, step: int) -> Iterator[Picture]:
    """All PNGs of a picture that there are, those before a resume too."""
    frames = frames_of(folder, what)
    if frames:
        data, size = encode_gif(frames)
        yield Picture(f"{what}.gif", f"images/{what}.gif", data, size, step)


def _picture(what: str, name: str, figure: Figure, step: int) -> Picture:
    pixels = render(figure)
    height, width = pixels.shape[:2]
    return Picture(name, f"images/{what}", encode_png(pixels, step), (width, height), step)


def _histograms(scene: Scene, step: int) -> Iterator[Values]:
    able, shown = abilities(scene), {}
    if Need.KL in able:
        shown["latents/kl_per_dimension"] = scene.space.kl
    if {Need.IMAGE, Need.POINTS} <= able:
        shown["latents/aggregate_posterior"] = scene.space.latents.sample
    for tag, values in shown.items():
        if values is not None and values.isfinite().all():  # a diverging run's are not, and TensorBoard would end it
            yield Values(tag, values.numpy(), step)


def image_folder(trainer: Trainer) -> Path:
    """Where a run keeps its pictures."""
    return Path(trainer.default_root_dir) / "images"


def publish(trainer: Trainer, drawn: Picture | Values) -> None:
    """To the folder and TensorBoard."""
    if isinstance(drawn, Picture):
        write_whole(image_folder(trainer) / drawn.name, drawn.data, flush=False)
    for writer in writers(trainer):
        if isinstance(drawn, Picture):
            add_encoded_image(writer, drawn.tag, drawn.data, drawn.size, drawn.step)
        else:
            writer.add_histogram(drawn.tag, drawn.values, drawn.step)


def log_graph(trainer: Trainer, scene: Scene) -> None:
    """The networks, as TensorBoard draws them, of a model that is one encoder and one decoder."""
    if Need.ONE_LAYER not in abilities(scene):
        return
    first = scene.examples.x[:1].to(scene.device)
    module, seen = autoencoder(scene.space.model, first, scene.on_device(scene.labels(1)))
    for writer in writers(trainer):
        add_model_graph(writer, module, seen)


def log_projector(trainer: Trainer, scene: Scene) -> None:
    """The centres of the examples' posteriors, where they are vectors."""
    if Need.VECTOR not in abilities(scene):
        return
    labels = scene.examples.labels
    words = None if labels is None else [scene.examples.class_of(label) for label in labels.tolist()]
    for writer in writers(trainer):
        add_projector(writer, scene.space.latents.centre, scene.examples.x, words, trainer.global_step)
