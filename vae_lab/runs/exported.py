"""An exported model: its config and where it comes from as JSON, its weights as safetensors; neither runs code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from vae_lab.config.safety import require_harmless
from vae_lab.config.schema import Config
from vae_lab.core import ImageSpec
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import write_atomically, write_json

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
FORMAT = 1  # of config.json


class Exported(NamedTuple):
    config: DictConfig  # of the run, with the prior that the model samples from
    image: ImageSpec
    weights: dict[str, Tensor]  # of the evaluated model
    step: int
    fitted_prior: str | None  # the name of the prior fitted to the latents, if that is the prior


def is_export(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def write_export(folder: Path, model: Exported, origin: dict[str, Any]) -> None:
    """Write config.json and weights.safetensors. origin: what else is known, such as versions and metrics."""
    from safetensors.torch import save

    weights = {name: value.detach().cpu().contiguous().clone() for name, value in model.weights.items()}
    content = {
        "format": FORMAT,
        "image": {**vars(model.image)},
        "step": model.step,
        "fitted_prior": model.fitted_prior,
        "weights": {name: [str(value.dtype).removeprefix("torch."), [*value.shape]] for name, value in weights.items()},
        **origin,
        "config": OmegaConf.to_container(model.config),
    }
    write_atomically(folder / WEIGHTS, save(weights))
    write_json(folder / CONFIG, content)  # last: it marks the folder


def read_export(folder: Path, trusted: bool = False) -> Exported:
    """UsageError: an incomplete or damaged export, of a newer version, or a config that could run code."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    again = "export it again: python -m vae_lab.export RUN"
    try:
        content = json.loads((folder / CONFIG).read_text())
        if content["format"] > FORMAT:
            raise UsageError(f"{folder}: exported by a newer version of vae_lab\nupdate vae_lab, or {again}")
        written = OmegaConf.create(content["config"])
        if not trusted:
            require_harmless(written, folder / CONFIG)
        config = OmegaConf.merge(OmegaConf.structured(Config), written)
        weights = load((folder / WEIGHTS).read_bytes())
        image, step, fitted = ImageSpec(**content["image"]), int(content["step"]), content["fitted_prior"]
    except (OSError, ValueError, TypeError, KeyError, SafetensorError, OmegaConfBaseException) as error:
        raise UsageError(f"{folder}: the export cannot be read ({error})\n{again}") from error
    assert isinstance(config, DictConfig)
    OmegaConf.set_struct(config, True)
    return Exported(config, image, weights, step, fitted)


def require_same(exported: Exported, weights: dict[str, Tensor]) -> None:
    """ValueError: weights that were read are not those that were written."""
    different = [name for name, value in weights.items() if not torch.equal(exported.weights[name].cpu(), value.cpu())]
    if different or exported.weights.keys() != weights.keys():
        raise ValueError(f"the exported weights differ: {', '.join(different[:3])}")
