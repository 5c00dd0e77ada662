"""The pictures of a snapshot, written to files and to TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import Trainer

from vae_lab.callbacks.tensorboard import add_encoded_image, add_model_graph, add_projector, writers
from vae_lab.data.datamodule import datamodule_of
from vae_lab.figures.canvas import Pixels, render
from vae_lab.figures.context import FigureContext
from vae_lab.figures.encoding import encode_gif, encode_png, find_frames
from vae_lab.figures.grids import GRIDS
from vae_lab.figures.network import autoencoder
from vae_lab.figures.pictures import PICTURES, network_drawing
from vae_lab.figures.requirements import Requirement, satisfied_requirements
from vae_lab.utils.files import write_atomically


class SnapshotLabel(NamedTuple):
    """A point in training, for file names and titles."""

    suffix: str  # "epoch=0007", or "step=00001000" within an epoch
    title: str  # "epoch 7"

    @classmethod
    def of(cls, trainer: Trainer) -> SnapshotLabel:
        """The present step: the end of an epoch, named by the number of complete epochs, or a step within one."""
        step = trainer.global_step
        finished, at = divmod(step, datamodule_of(trainer).steps_per_epoch)
        if at:
            return cls(f"step={step:08d}", f"step {step:,}")
        return cls(f"epoch={finished:04d}", f"epoch {finished}")


def log_grid(trainer: Trainer, what: str, context: FigureContext) -> None:
    """A bare grid, as images/<what>_epoch=0007.png and, in one series, under the tag images/<what>."""
    name = f"{what}_{SnapshotLabel.of(trainer).suffix}.png"
    _log_png(trainer, f"images/{what}", name, GRIDS[what](context))


def log_figure(trainer: Trainer, what: str, context: FigureContext) -> None:
    """A titled figure, as images/<what>.png and under the tag pictures/<what>: TensorBoard shows it below images/."""
    _log_png(trainer, f"pictures/{what}", f"{what}.png", render(PICTURES[what](context)))


def log_network(trainer: Trainer, context: FigureContext) -> None:
    """The diagram of the network, and TensorBoard's graph; for models with one layer of latents and an image."""
    if not {Requirement.ONE_LAYER, Requirement.IMAGE} <= satisfied_requirements(context):
        return
    _log_png(trainer, "pictures/network", "network.png", render(network_drawing(context)))
    first = context.examples.x[:1].to(context.device)
    module, seen = autoencoder(context.space.model, first, context.on_device(context.labels(1)))
    for writer in writers(trainer):
        add_model_graph(writer, module, seen)


def log_animation(trainer: Trainer, what: str) -> None:
    """A GIF of all bare grids of a name, including those from before a resume."""
    if frames := find_frames(image_folder(trainer), what):
        data, size = encode_gif(frames)
        _log_encoded(trainer, f"images/{what}.gif", f"{what}.gif", data, size)


def log_histograms(trainer: Trainer, context: FigureContext) -> None:
    """Histograms of the KL of each dimension and of the aggregate posterior, where the model has them."""
    able, shown = satisfied_requirements(context), {}
    if Requirement.KL in able:
        shown["latents/kl_per_dimension"] = context.space.kl
    if {Requirement.IMAGE, Requirement.POINTS} <= able:
        shown["latents/aggregate_posterior"] = context.space.latents.sample
    for tag, values in shown.items():
        if values is not None and values.isfinite().all():  # TensorBoard would raise on those of a diverging run
            for writer in writers(trainer):
                writer.add_histogram(tag, values.numpy(), trainer.global_step)


def log_projector(trainer: Trainer, context: FigureContext) -> None:
    """Write the posterior means of the examples to TensorBoard's projector, if they are vectors."""
    if not {Requirement.VECTOR, Requirement.IMAGE} <= satisfied_requirements(context):
        return
    labels = context.examples.labels
    names = None if labels is None else [context.examples.class_name(label) for label in labels.tolist()]
    for writer in writers(trainer):
        add_projector(writer, context.space.latents.centre, context.examples.x, names, trainer.global_step)


def image_folder(trainer: Trainer) -> Path:
    """`images` in the run directory."""
    return Path(trainer.default_root_dir) / "images"


def _log_png(trainer: Trainer, tag: str, name: str, pixels: Pixels) -> None:
    height, width = pixels.shape[:2]
    _log_encoded(trainer, tag, name, encode_png(pixels, trainer.global_step), (width, height))


def _log_encoded(trainer: Trainer, tag: str, name: str, data: bytes, size: tuple[int, int]) -> None:
    write_atomically(image_folder(trainer) / name, data, flush=False)
    for writer in writers(trainer):
        add_encoded_image(writer, tag, data, size, trainer.global_step)
