"""What vae_lab adds to Lightning's loggers: pictures, the choices of a run as its parameters, and an end for each job.

`add_picture` is the interface of a logger that shows pictures; another logger joins by `add_picture.register`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import singledispatch
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig
from PIL import Image

from vae_lab.callbacks.tensorboard import hyperparameters, stored_choices
from vae_lab.training.build import build_node
from vae_lab.utils.errors import UsageError, require_extra

PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # also the names of the extras


@singledispatch
def add_picture(logger: Logger, tag: str, file: Path, step: int) -> None:
    """Show a PNG or GIF file; nothing for a logger of numbers alone."""


@add_picture.register
def _(logger: TensorBoardLogger, tag: str, file: Path, step: int) -> None:
    # Encoded as it is: add_image would encode it again, and does not support animations.
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(file) as picture:
        width, height = picture.size
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.read_bytes())
    cast(Any, logger.experiment).file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


@add_picture.register
def _(logger: WandbLogger, tag: str, file: Path, step: int) -> None:
    show = logger.log_video if file.suffix == ".gif" else logger.log_image
    show(tag, [str(file)], step)


@add_picture.register
def _(logger: MLFlowLogger, tag: str, file: Path, step: int) -> None:
    client, run = logger.experiment, cast(str, logger.run_id)
    if file.suffix == ".gif":
        client.log_artifact(run, str(file), "animations")
    else:
        with Image.open(file) as picture:
            client.log_image(run, picture, key=tag, step=step)


@singledispatch
def close(logger: Logger, status: str) -> None:
    """End the record of a run, so that the next job of a sweep has one of its own. status: success or failed."""
    logger.finalize(status)


@close.register
def _(logger: TensorBoardLogger, status: str) -> None:
    logger.finalize(status)
    logger.experiment.close()  # its thread and file


@close.register
def _(logger: WandbLogger, status: str) -> None:
    if logger.version is not None:
        logger.experiment.finish(exit_code=int(status != "success"))


def build_loggers(nodes: Mapping[str, DictConfig | None], folder: Path, resumed_step: int | None) -> list[Logger]:
    """The loggers of a config, which write into a run directory. A resumed run goes on with its record.

    UsageError: a package is missing, or the record cannot be opened.
    """
    loggers = []
    for name, node in nodes.items():
        if node is None:
            continue
        package = PACKAGES.get(str(node.get("_target_")).rpartition(".")[2])
        if package:
            require_extra(package, package, where=f"logger={name}:")
        parts: dict[str, Any] = {"save_dir": str(folder)}
        if "purge_step" in node and resumed_step is not None:
            parts["purge_step"] = resumed_step + 1
        if package == "wandb" and node.get("id") is None:
            parts["id"] = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
        if package == "mlflow":  # Lightning's own default is a store of files
            default = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
            parts["tracking_uri"] = uri = node.get("tracking_uri") or default
            _create_mlflow_experiment(uri, node.get("experiment_name", "vae_lab"), node.get("artifact_location"))
        loggers.append(build_node(node, **parts))
    return loggers


def _create_mlflow_experiment(uri: str, name: str, artifacts: str | None) -> None:
    """Create the tables of a SQLite store and the experiment: jobs that start together would each try to."""
    from filelock import FileLock
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    file = uri.removeprefix("sqlite:///")
    try:
        with FileLock(f"{file}.lock") if file != uri else nullcontext():
            client = MlflowClient(uri)
            if client.get_experiment_by_name(name) is None:
                client.create_experiment(name, artifacts)
    except (MlflowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"logger.mlflow.tracking_uri={uri}: {reason}\nset it, or MLFLOW_TRACKING_URI") from error


@contextmanager
def records_closed(loggers: Iterable[Logger]) -> Iterator[None]:
    """A context at whose end the records are closed, as failed if an exception ended it."""
    status = "failed"
    try:
        yield
        status = "success"
    finally:
        for logger in loggers:
            close(logger, status)


class LoggerRecords(Callback):
    """Opens the record of each logger, gives it the choices of the run, and at the end the best metrics."""

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """UsageError: a record cannot be opened, as without a login or a server."""
        choices = hyperparameters(pl_module.config, stored_choices(Path(trainer.default_root_dir)))
        for logger in _other_loggers(trainer):
            try:
                logger.log_hyperparams(choices)
            except Exception as error:  # whatever a service raises
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                name = type(logger).__name__
                advice = "; log in, or logger.wandb.mode=offline" if name == "WandbLogger" else ""
                raise UsageError(
                    f"{name} cannot open its record: {reason}\ncheck its options below logger{advice}"
                ) from error

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        best = {f"best/{name}": value for name, value in pl_module.best_metrics.items() if name.startswith("val/")}
        for logger in _other_loggers(trainer):
            logger.log_metrics(best, step=trainer.global_step)


def _other_loggers(trainer: Trainer) -> list[Logger]:
    """The loggers other than TensorBoard, whose HPARAMS `TensorBoardSummary` writes; on the first process alone."""
    return [it for it in trainer.loggers if not isinstance(it, TensorBoardLogger)] if trainer.is_global_zero else []
