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
from vae_lab.figures.files import encode_gif, encode_png, frames_of
from vae_lab.figures.network import autoencoder
from vae_lab.figures.pictures import PICTURES, drawable, network_drawing
from vae_lab.figures.scene import Scene
from vae_lab.files import write_whole

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
    """Draw the posterior's sample before any picture draws random numbers: it is the same beside all of them."""
    if len(scene.examples.x):
        _ = scene.posterior


def network(scene: Scene, step: int) -> Iterator[Picture]:
    """What does not change."""
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
    shown = {"latents/kl_per_dimension": scene.kl}
    if len(scene.examples.x):
        shown["latents/aggregate_posterior"] = scene.posterior[2]
    for tag, values in shown.items():
        if values.isfinite().all():  # a diverging run's are not, and TensorBoard would end it
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
    """The network, as TensorBoard draws it."""
    module = autoencoder(scene.model.encoder, scene.model.decoder, scene.latent_dim)
    for writer in writers(trainer):
        add_model_graph(writer, module, scene.examples.x[:1].to(scene.device))


def log_projector(trainer: Trainer, scene: Scene) -> None:
    """The posterior means of the examples."""
    labels, names = scene.examples.labels, scene.examples.class_names
    words = None
    if labels is not None:
        words = [names[label] if label < len(names) else str(label) for label in labels.tolist()]
    for writer in writers(trainer):
        add_projector(writer, scene.posterior[0], scene.examples.x, words, trainer.global_step)
