"""Build the data module, the model and the Lightning module from a checked config."""

from __future__ import annotations

from collections.abc import Callable
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
from vae_lab.runs.resume import resume_checkpoint
from vae_lab.training.lightning_module import VAEModule
from vae_lab.training.nonfinite import can_skip_on_device
from vae_lab.training.optimizer import OptimizerSettings
from vae_lab.utils.errors import UsageError
from vae_lab.utils.rng import INITIALIZE, mix


def build_node(node: DictConfig, **parts: Any) -> Any:
    """Instantiate a config node; a `_partial_` is called with `parts`. UsageError: a constructor refused its values."""
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


def build(config: DictConfig, stop_requested: Callable[[], bool] = lambda: False) -> tuple[ImageDataModule, VAEModule]:
    """The data module and the Lightning module of a checked config; equal seeds give equal initial weights."""
    data: ImageDataModule = build_node(config.data)
    settings: OptimizerSettings = build_node(config.optimizer)
    trainer = config.trainer
    limit = trainer.overfit_batches or trainer.limit_train_batches
    data.configure(
        LoaderOptions(
            config.seed, settings.accumulate, trainer.steps_per_execution, limit, repeat=trainer.overfit_batches > 0
        )
    )
    data.load()
    if trainer.cuda_graphs:
        require_capturable(settings)
    return data, build_module(config, data, data.image, data.size("train"), settings, stop_requested)


def build_module(
    config: DictConfig,
    data: ImageDataModule,
    image: ImageSpec,
    num_images: int,
    settings: OptimizerSettings,
    stop_requested: Callable[[], bool] = lambda: False,
) -> VAEModule:
    """The Lightning module for `num_images` training images; only batch size and preprocessing of `data` are used."""
    torch.manual_seed(mix(config.seed, INITIALIZE))
    model = build_model(config, image)
    module = VAEModule(
        model=model,
        objective=build_node(config.objective, spec=TrainingSpec(image, model.latents, num_images)),
        optimizer=settings,
        preprocess=data.preprocess,
        batch_size=data.batch_size,
        seed=config.seed,
        config=cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True)),
        compile=config.trainer.compile,
        cuda_graphs=config.trainer.cuda_graphs,
        on_nonfinite=config.trainer.on_nonfinite,
        stop_requested=stop_requested,
    )
    if config.trainer.channels_last:
        module.to(memory_format=torch.channels_last)
    return module


def require_capturable(settings: OptimizerSettings) -> None:
    """UsageError: an optimiser that reads back from the device, or cannot skip a non-finite step there."""
    optimizer = settings.build([torch.nn.Parameter(torch.zeros(1))])
    if "capturable" not in optimizer.defaults or not can_skip_on_device(optimizer):
        raise UsageError(
            f"trainer.cuda_graphs=true: {type(optimizer).__name__} cannot be recorded in a CUDA graph (it has no "
            "option 'capturable', or no fused kernels that skip a non-finite step).\n"
            "Use optimizer=adam or adamw with optimizer.algorithm.fused=true, or leave trainer.cuda_graphs=false"
        )


def build_model(config: DictConfig, image: ImageSpec) -> Model:
    model: Model = build_node(config.model, image=image)
    return model


def restore_model(saved: dict[str, Any], config: DictConfig) -> Model:
    """The model of a checked config with the weights and prior of a checkpoint; frozen, in evaluation mode."""
    model = build_model(config, ImageSpec(**saved["image"]))
    model.load_state_dict(model_weights(saved))
    return model.eval().requires_grad_(False)


def model_weights(saved: dict[str, Any]) -> dict[str, Tensor]:
    """The weights a checkpoint is evaluated with: their moving average if the run kept one."""
    weights: dict[str, Tensor] = saved["state_dict"]
    prefix = "average.model." if any(name.startswith("average.model.") for name in weights) else "model."
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def initialize_from(module: VAEModule, run: str | Path) -> None:
    """Load the best weights of another run, or its last if it ended before a validation.

    UsageError: not a run, or a different architecture.
    """
    # The config of that run is not read, since nothing is built from it.
    checkpoint = resume_checkpoint(run)  # the run's last one, unless it names one
    if checkpoint != Path(run) and (best := checkpoint.with_name("best.ckpt")).exists():
        checkpoint = best
    weights = model_weights(load_checkpoint(checkpoint, needed=("state_dict",)))
    try:
        module.model.load_state_dict(weights)
        if module.average is not None:
            module.average.model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise UsageError(
            f"init_from={run}: its weights do not fit this model ({first[0].strip()}).\n"
            "Use the model and data options of that run, or a run of the same architecture"
        ) from error
