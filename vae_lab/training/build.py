"""From a checked config to the data, the model and the experiment that it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vae_lab.core import ImageSpec, TrainingSpec
from vae_lab.data.datamodule import ImageDataModule, LoaderOptions
from vae_lab.models.base import Model
from vae_lab.runs.checkpoint_io import load_checkpoint
from vae_lab.training.lightning_module import VAEModule
from vae_lab.training.optimizer import OptimizerSettings
from vae_lab.training.step import Execution
from vae_lab.utils.errors import UsageError
from vae_lab.utils.rng import INITIALIZE, mix


def build_node(node: DictConfig, **parts: Any) -> Any:
    """What a config node builds; a `_partial_` one is completed with `parts`.

    UsageError: what a constructor found wrong with the values it was given.
    """
    try:
        if node.get("_partial_"):
            return instantiate(node, _convert_="all")(**parts)
        return instantiate(node, _convert_="all", **parts)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | MisconfigurationException):
            raise UsageError(str(error.__cause__)) from error
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def build(config: DictConfig) -> tuple[ImageDataModule, VAEModule]:
    """The data and the experiment that a checked config describes; the same weights for the same seed."""
    data: ImageDataModule = build_node(config.data)
    settings: OptimizerSettings = build_node(config.optimizer)
    data.loader_options = LoaderOptions(
        config.seed,
        settings.accumulate,
        config.trainer.steps_per_execution,
        config.trainer.limit_train_batches,
    )
    require_capturable(settings, config.trainer.cuda_graphs)
    return data, build_module(config, data, data.image, data.size("train"), settings)


def build_module(
    config: DictConfig, data: ImageDataModule, image: ImageSpec, num_images: int, settings: OptimizerSettings
) -> VAEModule:
    """The experiment on so many training images of this kind; else only the batches' size and preparation are asked."""
    torch.manual_seed(mix(config.seed, INITIALIZE))
    model = build_model(config, image)
    experiment = VAEModule(
        model=model,
        objective=build_node(config.objective, spec=TrainingSpec(image, model.latents, num_images)),
        optimizer=settings,
        preprocess=data.preprocess,
        batch_size=data.batch_size,
        seed=config.seed,
        config=cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True)),
        execution=Execution(config.trainer.compile, config.trainer.cuda_graphs),
        on_nonfinite=config.trainer.on_nonfinite,
    )
    if config.trainer.channels_last:
        experiment.to(memory_format=torch.channels_last)
    return experiment


def require_capturable(settings: OptimizerSettings, cuda_graphs: bool) -> None:
    """UsageError for an optimiser whose step reads back from the device, which no CUDA graph can hold."""
    optimizer = settings.build([torch.nn.Parameter(torch.zeros(1))])
    if cuda_graphs and "capturable" not in optimizer.defaults:
        raise UsageError(
            f"trainer.cuda_graphs=true: {type(optimizer).__name__} cannot be recorded in a CUDA graph "
            "(it has no option 'capturable').\nUse optimizer=adam or adamw, or leave trainer.cuda_graphs=false"
        )


def build_model(config: DictConfig, image: ImageSpec) -> Model:
    """The model of a config, for images of this kind."""
    model: Model = build_node(config.model, image=image)
    return model


def restore_model(saved: dict[str, Any], config: DictConfig) -> Model:
    """The model of a checked config with the weights of a checkpoint, and the prior it was trained with; frozen."""
    model = build_model(config, ImageSpec(**saved["image"]))
    model.load_state_dict(model_weights(saved))
    return model.eval().requires_grad_(False)


def model_weights(saved: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that a checkpoint's run evaluates with."""
    weights: dict[str, Tensor] = saved["state_dict"]
    prefix = "average.model." if any(name.startswith("average.model.") for name in weights) else "model."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def initialize_from(experiment: VAEModule, run: str | Path) -> None:
    """Start an experiment from another run's best weights. UsageError: no run, or another architecture."""
    # Nothing of that run is built, so its config is not read.
    weights = model_weights(load_checkpoint(Path(run) / "checkpoints" / "best.ckpt", needed=("state_dict",)))
    try:
        experiment.model.load_state_dict(weights)
        if experiment.average is not None:
            experiment.average.model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise UsageError(
            f"init_from={run}: its weights do not fit this model ({first[0].strip()}).\n"
            "Give the run's own model and data options, or a run of the same architecture"
        ) from error
