"""What TensorBoard shows besides scalars: pictures, histograms, projector, graph, config, hyperparameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

THUMBNAIL = 32  # pixels: 2,000 of them stay far below the 8,192 pixels that a sprite may have
SHOWN_METRICS = ("val/", "test/")


class ConfiguredModule(Protocol):
    """What the summary asks of an experiment."""

    config: dict[str, Any]  # the composed config, resolved


def loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    """The TensorBoard loggers among the trainer's."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def writers(trainer: Trainer) -> list[SummaryWriter]:
    """Their writers; empty on all ranks but the first, where Lightning hands out dummies."""
    return [cast(SummaryWriter, logger.experiment) for logger in loggers(trainer)] if trainer.is_global_zero else []


def add_encoded_image(writer: SummaryWriter, tag: str, data: bytes, size: tuple[int, int], step: int) -> None:
    """A picture that is already PNG or GIF (add_image would encode it again, and knows no animation)."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
    cast(Any, writer).file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def add_projector(
    writer: SummaryWriter, points: Tensor, images: Tensor, names: Sequence[str] | None, step: int
) -> None:
    """Points (N, D) in the projector tab, each with its image (N, C, H, W) as thumbnail and its class."""
    height, width = images.shape[-2:]
    shrink = min(1.0, THUMBNAIL / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    thumbnails = nn.functional.interpolate(images, size, mode="area").expand(-1, 3, -1, -1)
    writer.add_embedding(points, list(names) if names else None, thumbnails, step, "posterior_means")


def add_model_graph(writer: SummaryWriter, module: nn.Module, example: Tensor) -> None:
    """The graph tab; a network that cannot be traced is left out with a warning, not a failed run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about shapes taken as constants
            writer.add_graph(module, example)
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"the model graph is not in TensorBoard: {reason}", stacklevel=2)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """The leaves of a nested config as dotted names, each a scalar that the HPARAMS tab takes."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value if isinstance(value, bool | int | float | str) else str(value)


class TensorBoardSummary(Callback):
    """The config as text at the start; hyperparameters beside the final metrics at the end.

    HPARAMS are written once, since TensorBoard keeps the first: after the test, or after the fit if
    `after_test` is false. `write_hparams` may also be called directly.
    """

    def __init__(self, after_test: bool = True) -> None:
        self.after_test = after_test
        self._metrics: dict[str, float] = {}
        self._written = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The config tag of the TEXT tab."""
        from omegaconf import OmegaConf

        text = OmegaConf.to_yaml(cast(ConfiguredModule, pl_module).config)
        for writer in writers(trainer):
            writer.add_text("config", f"```yaml\n{text}```", trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation's metrics: the test forgets them."""
        self._collect(trainer)
        if not self.after_test:
            self.write_hparams(trainer, self._metrics)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hyperparameters beside the metrics of the last validation and the test."""
        self._collect(trainer)
        self.write_hparams(trainer, self._metrics)

    def write_hparams(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """The HPARAMS tab of this run: the config's scalars and `metrics`. Later calls do nothing."""
        if self._written or not trainer.is_global_zero:
            return
        from torch.utils.tensorboard.summary import hparams

        experiment = cast(ConfiguredModule, trainer.lightning_module)
        # The metrics' scalars are there: a logger's own log_hyperparams would write them twice.
        summaries = hparams(dict(flatten(experiment.config)), dict(metrics))
        for writer in writers(trainer):
            for summary in summaries:
                writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
            writer.flush()
        self._written = True

    def _collect(self, trainer: Trainer) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.startswith(SHOWN_METRICS):
                self._metrics[name] = float(torch.as_tensor(value))
