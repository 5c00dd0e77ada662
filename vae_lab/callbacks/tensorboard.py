"""TensorBoard output other than scalars: images, projector, graph, config, hyperparameters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

THUMBNAIL = 32  # pixels a side: the sprite of 2,000 images stays far below its limit of 8,192 pixels a side
SHOWN_METRICS = ("val/", "test/")
CHOICES = (
    *("data", "model", "model.encoder", "model.decoder", "model.posterior", "model.prior", "model.likelihood"),
    *("objective.bound", "objective.regularizers", "objective.beta_schedule", "optimizer.algorithm", "second_stage"),
)
VARIED = (
    *("seed", "data.image_size", "data.batch_size", "data.binarize", "model.latent_dim", "model.conditional"),
    *("objective.beta", "objective.free_bits", "objective.capacity", "objective.num_samples", "optimizer.lr"),
    *("optimizer.clip_norm", "optimizer.ema_decay", "trainer.precision", "trainer.max_epochs", "trainer.max_steps"),
)


class ConfiguredModule(Protocol):
    """What TensorBoardSummary needs of the LightningModule."""

    config: dict[str, Any]  # the composed config, resolved
    metrics: dict[str, float]  # latest value of each


def loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def writers(trainer: Trainer) -> list[SummaryWriter]:
    """The SummaryWriters of the TensorBoard loggers; empty on ranks other than 0, where Lightning returns dummies."""
    return [cast(SummaryWriter, logger.experiment) for logger in loggers(trainer)] if trainer.is_global_zero else []


def add_encoded_image(writer: SummaryWriter, tag: str, data: bytes, size: tuple[int, int], step: int) -> None:
    """Add an encoded PNG or GIF (add_image would encode it again, and does not support animations)."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    width, height = size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
    cast(Any, writer).file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def add_projector(
    writer: SummaryWriter, points: Tensor, images: Tensor, names: Sequence[str] | None, step: int
) -> None:
    """Add points (N, D) to the projector tab, each with its image (N, C, H, W) as thumbnail and its class name."""
    height, width = images.shape[-2:]
    shrink = min(1.0, THUMBNAIL / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    thumbnails = nn.functional.interpolate(images, size, mode="area").expand(-1, 3, -1, -1)
    writer.add_embedding(points, list(names) if names else None, thumbnails, step, "posterior_means")


def add_model_graph(writer: SummaryWriter, module: nn.Module, example: Tensor) -> None:
    """Add the graph; a network that cannot be traced gives a warning instead of a failed run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's, about shapes taken as constants
            writer.add_graph(module, example)
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(f"no model graph in TensorBoard, tracing failed: {reason}", stacklevel=2)


def hyperparameters(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """A row of the HPARAMS tab: the classes chosen in the groups, and the keys that experiments vary."""
    shown: dict[str, bool | int | float | str] = {}
    for name in CHOICES:
        node = _at(config, name)
        if isinstance(node, Mapping) and "_target_" in node:
            shown[name] = str(node["_target_"]).rpartition(".")[2]
        elif isinstance(node, list) and node:
            shown[name] = ", ".join(str(each["_target_"]).rpartition(".")[2] for each in node)
    for name in VARIED:
        value = _at(config, name)
        if isinstance(value, bool | int | float | str):
            shown[name] = value
    return shown


def _at(config: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name; None if there is none."""
    value: Any = config
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


class TensorBoardSummary(Callback):
    """Writes the config as text at the start, and hyperparameters with the final metrics at the end.

    HPARAMS are written once, since TensorBoard keeps the first: after the test, or after the fit if
    `after_test` is False. `write_hparams` may also be called directly.
    """

    def __init__(self, after_test: bool = True) -> None:
        self.after_test = after_test
        self._written = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config to the TEXT tab."""
        from omegaconf import OmegaConf

        text = OmegaConf.to_yaml(cast(ConfiguredModule, pl_module).config)
        for writer in writers(trainer):
            writer.add_text("config", f"```yaml\n{text}```", trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.after_test:
            self.write_hparams(trainer, cast(ConfiguredModule, pl_module))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write_hparams(trainer, cast(ConfiguredModule, pl_module))

    def write_hparams(self, trainer: Trainer, pl_module: ConfiguredModule) -> None:
        """Write the hyperparameters with the metrics of the last validation and the test. Later calls do nothing."""
        if self._written or not trainer.is_global_zero:
            return
        from torch.utils.tensorboard.summary import hparams

        metrics = {name: value for name, value in pl_module.metrics.items() if name.startswith(SHOWN_METRICS)}
        # Not log_hyperparams of the logger: it would write the metrics' scalars a second time.
        summaries = hparams(hyperparameters(pl_module.config), metrics)
        for writer in writers(trainer):
            for summary in summaries:
                writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
            writer.flush()
        self._written = True
