"""From a checked config to the data, the model and the experiment that it describes."""

from __future__ import annotations

from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from vae_lab.data.images import ImageSpec
from vae_lab.data.module import ImageData, Plan
from vae_lab.errors import UsageError
from vae_lab.experiment import Experiment
from vae_lab.models import Model
from vae_lab.random_streams import INITIALIZE, mix
from vae_lab.regularizers.parts import Setting
from vae_lab.steps import Execution, OptimizerSettings


def instantiated(node: DictConfig, **parts: Any) -> Any:
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


def build(config: DictConfig) -> tuple[ImageData, Experiment]:
    """The data and the experiment that a checked config describes; the same weights for the same seed."""
    data: ImageData = instantiated(config.data)
    settings: OptimizerSettings = instantiated(config.optimizer)
    data.plan = Plan(
        config.seed,
        settings.accumulate,
        config.trainer.steps_per_execution,
        config.trainer.limit_train_batches,
    )
    require_capturable(settings, config.trainer.cuda_graphs)
    return data, build_experiment(config, data, data.image, data.size("train"), settings)


def build_experiment(
    config: DictConfig, data: ImageData, image: ImageSpec, num_images: int, settings: OptimizerSettings
) -> Experiment:
    """The experiment on so many training images of this kind; else only the batches' size and preparation are asked."""
    torch.manual_seed(mix(config.seed, INITIALIZE))
    model = build_model(config, image)
    experiment = Experiment(
        model=model,
        objective=instantiated(config.objective, setting=Setting(image, model.latents, num_images)),
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
    model: Model = instantiated(config.model, image=image)
    return model
