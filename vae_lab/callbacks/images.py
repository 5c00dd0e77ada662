"""Pictures of the model: bare grids during training, annotated figures once at the end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack, cast

from lightning.pytorch import Callback, Trainer

from vae_lab.callbacks.loggers import add_picture
from vae_lab.callbacks.tensorboard import add_model_graph, add_projector, writers
from vae_lab.core import LatentSpec
from vae_lab.data.datamodule import ImageDataModule, datamodule_of
from vae_lab.figures.canvas import encode_gif, encode_png, figure_png
from vae_lab.figures.context import ExampleImages, FigureContext, FigureSizes, SizeOptions
from vae_lab.figures.mosaic import Mosaic
from vae_lab.figures.network import Autoencoder, network_inputs
from vae_lab.figures.pictures import PICTURES, available_pictures, draw_figure, network, require_available
from vae_lab.models.base import evaluation_mode
from vae_lab.utils.files import write_atomically

log = logging.getLogger("vae_lab")
GRIDS = ("reconstructions", "samples", "latent_grid")  # drawn bare during training
NUM_EXAMPLES = 256  # images encoded during training: a latent grid estimates the range of its axes from them
SPLITS: tuple[Literal["test", "val", "train"], ...] = ("test", "val", "train")
MAX_VALUES = 2**25  # pixels times channels of the example images: 128 MiB
MAX_COORDINATES = 2**22  # images times latent dimensions: their principal components take seconds


class ImageLogger(Callback):
    """Draws the model every few epochs or steps and at the end, as PNG in `<run>/images` and in the loggers.

    During training: bare grids of samples, reconstructions and, with at most two latents, the latent space. At the end:
    all pictures, with titles and axes. Uses the evaluated weights (EMA if on) in evaluation mode, and leaves
    training's random state unchanged. The end is skipped, with a warning, once the run is asked to stop; a picture that
    fails is a warning too.

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
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                raise ValueError(f"callbacks.images.{name} is {value}; expected at least 1, or null for never")
        for what in pictures or ():
            if what not in PICTURES:
                known = ", ".join(sorted(PICTURES))
                raise ValueError(f"callbacks.images.pictures has {what!r}; expected one of {known}")
        self.every_n_epochs, self.every_n_steps = every_n_epochs, every_n_steps
        self.pictures = pictures
        self.animations, self.projector = animations, projector
        self.sizes = FigureSizes(**sizes)
        self._drawn_at = -1  # step of the last grids

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Raises UsageError if a requested picture is not available."""
        if self.pictures is not None and stage == "fit":
            with self._context(trainer, pl_module) as context:
                require_available(context, self.pictures)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Draw if due. A call of `training_step` may be several optimiser steps, but ends where pictures are due."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._draw_grids(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw after the epoch's validation; not after a partial epoch."""
        unit, finished = position(trainer)
        if self.every_n_epochs and unit == "epoch" and finished % self.every_n_epochs == 0:
            self._draw_grids(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the last grids and the figures. Training is saved by now: a resumed run draws them again."""
        self._draw_grids(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        skipped = []
        with (
            pl_module.stopwatch.timed("last_pictures"),
            failure_as_warning(pl_module, "pictures"),
            self._context(trainer, pl_module, self.sizes.num_scatter) as context,
        ):
            for name, draw in self._last_pictures(trainer, context).items():
                if pl_module.stop_requested():
                    skipped.append(name)
                    continue
                with failure_as_warning(pl_module, name):
                    draw()
        if skipped:
            pl_module.caveats["pictures"] = [f"pictures were skipped: {', '.join(skipped)}"]

    def _draw_grids(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the bare grids and the histograms, once a step."""
        if not trainer.is_global_zero or trainer.global_step == self._drawn_at:
            return
        self._drawn_at = trainer.global_step
        with (
            pl_module.stopwatch.timed("pictures"),
            failure_as_warning(pl_module, "pictures"),
            self._context(trainer, pl_module, NUM_EXAMPLES) as context,
        ):
            for what in self._grids(context):
                with failure_as_warning(pl_module, what):
                    log_grid(trainer, what, context)
            log_histograms(trainer, context)

    @contextmanager
    def _context(self, trainer: Trainer, pl_module: Any, num_examples: int = 2) -> Iterator[FigureContext]:
        """The model in evaluation mode with example images; modes and random state are restored on exit."""
        model, preprocess = pl_module.evaluation_model, pl_module.preprocess
        examples = example_images(datamodule_of(trainer), max(num_examples, self.sizes.num_images), model.latents)
        unit, number = position(trainer)
        corrupt = None if preprocess.corruption is None else preprocess.corrupt
        with evaluation_mode(model, self.sizes.seed):
            yield FigureContext(model, examples, self.sizes, f"{unit} {number:,}", pl_module.kl_per_dim, corrupt)

    def _available(self, context: FigureContext) -> list[str]:
        return [what for what in available_pictures(context) if self.pictures is None or what in self.pictures]

    def _grids(self, context: FigureContext) -> list[str]:
        """Names of the bare grids of this model."""
        planar = sum(math.prod(latent.shape) for latent in context.model.latents) <= 2
        able = self._available(context)
        return [what for what in GRIDS if what in able and (what != "latent_grid" or planar)]

    def _last_pictures(self, trainer: Trainer, context: FigureContext) -> dict[str, Callable[[], None]]:
        """Name -> function that draws; in order."""
        jobs: dict[str, Callable[[], None]] = {}
        if self.animations:
            moving = [what for what in self._grids(context) if what != "reconstructions"]
            jobs |= {f"{what}.gif": partial(log_animation, trainer, what) for what in moving}
        jobs |= {what: partial(log_figure, trainer, what, context) for what in self._available(context)}
        if not context.model.is_hierarchy:
            jobs["network"] = partial(log_network, trainer, context)
        if self.projector and context.has_vector:
            jobs["projector"] = partial(log_projector, trainer, context)
        return jobs


@contextmanager
def failure_as_warning(pl_module: Any, what: str) -> Iterator[None]:
    """A picture that fails, as of diverged weights, costs a warning rather than the training."""
    try:
        yield
    except Exception as error:  # whatever a plotting library makes of values that nobody expected
        reason = (str(error) or repr(error)).splitlines()[0]
        warning = f"{what} could not be drawn: {reason}"
        if what not in pl_module.caveats:  # once, not every epoch
            log.warning("%s", warning)
        pl_module.caveats[what] = [warning]


def position(trainer: Trainer) -> tuple[str, int]:
    """The present step as ("epoch", complete epochs) at the end of an epoch, and as ("step", steps) within one."""
    finished, at = divmod(trainer.global_step, datamodule_of(trainer).steps_per_epoch)
    return ("step", trainer.global_step) if at else ("epoch", finished)


def example_images(data: ImageDataModule, wanted: int, latents: Sequence[LatentSpec]) -> ExampleImages:
    """Images of the first split that has any, bounded by MAX_VALUES and MAX_COORDINATES."""
    split = next(split for split in SPLITS if data.size(split))
    first, _ = data.example_images(split, 1)
    held = len(latents) == 1 and latents[0].kind != "codes"  # other latents are counted or averaged, not held
    most = MAX_COORDINATES // math.prod(latents[0].shape) if held else MAX_COORDINATES
    x, labels = data.example_images(split, max(1, min(wanted, MAX_VALUES // first.numel(), most)))
    return ExampleImages(x, labels, data.class_names, split)


def log_grid(trainer: Trainer, what: str, context: FigureContext) -> None:
    """A bare grid, as images/<what>_epoch=0007.png and, in one series, under the tag images/<what>."""
    unit, number = position(trainer)
    name = f"{what}_{unit}={number:0{8 if unit == 'step' else 4}d}.png"
    pixels = cast(Mosaic, PICTURES[what].draw(context)).pixels()
    log_image(trainer, f"images/{what}", name, encode_png(pixels))


def log_figure(trainer: Trainer, what: str, context: FigureContext) -> None:
    """An annotated figure, as images/<what>.png and under the tag pictures/<what>, which TensorBoard shows below."""
    log_image(trainer, f"pictures/{what}", f"{what}.png", figure_png(draw_figure(what, context)))


def log_network(trainer: Trainer, context: FigureContext) -> None:
    """The diagram of the network, and TensorBoard's graph."""
    log_image(trainer, "pictures/network", "network.png", figure_png(network(context)))
    model = context.space.model
    seen, z = network_inputs(model, context.examples.x[:1].to(model.device), context.labels(1))
    for writer in writers(trainer):
        add_model_graph(writer, Autoencoder(model, z), seen)


def log_animation(trainer: Trainer, what: str) -> None:
    """A GIF of all bare grids of a name in the order of their steps, including those from before a resume."""
    epoch = datamodule_of(trainer).steps_per_epoch

    def step(path: Path) -> int:
        name, _, number = path.stem.rpartition("=")
        return int(number) * (epoch if name.endswith("epoch") else 1)

    if frames := sorted(image_folder(trainer).glob(f"{what}_*=*.png"), key=step):
        log_image(trainer, f"images/{what}.gif", f"{what}.gif", encode_gif(frames))


def log_histograms(trainer: Trainer, context: FigureContext) -> None:
    """Histograms of the KL of each dimension and of the aggregate posterior, where the model has them."""
    if not context.has_continuous_latents:
        return
    latents = {"kl_per_dimension": context.space.kl, "aggregate_posterior": context.space.latents.sample}
    for name, values in latents.items():
        if values is not None:
            for writer in writers(trainer):
                writer.add_histogram(f"latents/{name}", values.numpy(), trainer.global_step)


def log_projector(trainer: Trainer, context: FigureContext) -> None:
    """Write the posterior means of the examples to TensorBoard's projector."""
    labels = context.examples.labels
    names = None if labels is None else [context.examples.class_name(label) for label in labels.tolist()]
    for writer in writers(trainer):
        add_projector(writer, context.space.latents.centre, context.examples.x, names, trainer.global_step)


def image_folder(trainer: Trainer) -> Path:
    """`images` in the run directory."""
    return Path(trainer.default_root_dir) / "images"


def log_image(trainer: Trainer, tag: str, name: str, data: bytes) -> None:
    """An encoded image, to a file and to the loggers that show pictures."""
    write_atomically(image_folder(trainer) / name, data, flush=False)
    for logger in trainer.loggers:
        add_picture(logger, tag, image_folder(trainer) / name, trainer.global_step)
