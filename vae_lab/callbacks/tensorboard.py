"""TensorBoard output other than scalars: images, projector, graph, config, hyperparameters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from vae_lab.figures.mosaic import on_white

THUMBNAIL = 32  # pixels a side: the sprite of 2,000 images stays far below its limit of 8,192 pixels a side
# The tab CUSTOM SCALARS shows the splits of a term in one chart; SCALARS groups by the part of a tag before the slash.
TERMS = ("elbo", "log_px", "kl", "loss")
LAYOUT = {"terms": {term: ["Multiline", [f"{split}/{term}" for split in ("train", "val", "test")]] for term in TERMS}}
CHOICES = (
    *("experiment", "data", "model", "model/encoder", "model/decoder", "model/posterior", "model/prior"),
    *("model/likelihood", "objective/bound", "objective/regularizers", "objective/beta_schedule", "second_stage"),
)
VARIED = (
    *("seed", "data.image_size", "data.batch_size", "data.binarize", "model.latent_dim", "model.conditional"),
    *("objective.beta", "objective.free_bits", "objective.capacity", "objective.num_samples", "optimizer.lr"),
    *("optimizer.clip_norm", "optimizer.ema_decay", "trainer.precision", "trainer.max_epochs", "trainer.max_steps"),
)


def writers(trainer: Trainer) -> list[SummaryWriter]:
    """The SummaryWriters of the TensorBoard loggers; empty on ranks other than 0, where Lightning returns dummies."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return [cast(SummaryWriter, logger.experiment) for logger in loggers] if trainer.is_global_zero else []


def add_projector(
    writer: SummaryWriter, points: Tensor, images: Tensor, names: Sequence[str] | None, step: int
) -> None:
    """Add points (N, D) to the projector tab, each with its image (N, C, H, W) as thumbnail and its class name."""
    height, width = images.shape[-2:]
    shrink = min(1.0, THUMBNAIL / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    thumbnails = nn.functional.interpolate(on_white(images), size, mode="area").expand(-1, 3, -1, -1)
    below, right = (max(size) - side for side in size)
    thumbnails = nn.functional.pad(thumbnails, (0, right, 0, below), value=1.0)  # the projector takes squares alone
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


def hyperparameters(config: Mapping[str, Any], choices: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """A row of the HPARAMS tab: the options chosen in the groups, and the keys that experiments vary."""
    tree = OmegaConf.create(dict(config))
    shown = {name: choices.get(name) for name in CHOICES} | {name: OmegaConf.select(tree, name) for name in VARIED}
    return {name: value for name, value in shown.items() if isinstance(value, bool | int | float | str)}


def stored_choices(run: Path) -> Mapping[str, Any]:
    """The option of each config group, as Hydra has stored them in a run directory; empty if it has not."""
    file = run / ".hydra" / "hydra.yaml"
    return cast(Mapping[str, Any], OmegaConf.load(file).hydra.runtime.choices) if file.is_file() else {}


class TensorBoardSummary(Callback):
    """Writes the config and the layout of the charts at the start, and HPARAMS after the test.

    HPARAMS are written once, since TensorBoard keeps the first: the final metrics of validation and test, and as
    `best/val/elbo` and so on those of the best validation.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        text = OmegaConf.to_yaml(pl_module.config)
        for writer in writers(trainer):
            writer.add_text("config", f"```yaml\n{text}```", trainer.global_step)
            writer.add_custom_scalars(LAYOUT)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        from torch.utils.tensorboard.summary import hparams

        best = {f"best/{name}": value for name, value in pl_module.best_metrics.items() if name.startswith("val/")}
        final = {name: value for name, value in pl_module.metrics.items() if name.startswith(("val/", "test/"))}
        best, final = ({name: value for name, value in part.items() if "_stderr" not in name} for part in (best, final))
        # Not add_hparams of the writer: it would write the metrics' scalars a second time, as a run of their own.
        choices = stored_choices(Path(trainer.default_root_dir))
        summaries = hparams(hyperparameters(pl_module.config, choices), best | final)
        for writer in writers(trainer):
            for name, value in best.items():
                writer.add_scalar(name, value, trainer.global_step)
            for summary in summaries:
                writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
            writer.flush()
