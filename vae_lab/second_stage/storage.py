"""RUN/prior/: the prior fitted to the latents of a run, and the model weights it was fitted to.

config.yaml holds its config (`second_stage`), weights.ckpt its weights and a fingerprint of the model's, scores.json
the results (not summary.json, which marks a run directory). The folder is written atomically.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vae_lab.config.schema import FitPriorConfig
from vae_lab.config.validation import check_targets
from vae_lab.core import Prior
from vae_lab.models.base import Model
from vae_lab.runs.checkpoint_io import load_checkpoint, write_checkpoint
from vae_lab.runs.stored_config import read_config
from vae_lab.second_stage.stage import require_latent_kind, require_single_layer
from vae_lab.training.build import build_node, model_weights
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import fsync_folder, write_atomically, write_json

FOLDER, CONFIG, WEIGHTS = "prior", "config.yaml", "weights.ckpt"


class FittedTo(NamedTuple):
    """The model weights whose latents a prior was fitted to."""

    checkpoint: str  # file name
    step: int
    fingerprint: str

    @classmethod
    def of(cls, checkpoint: str, saved: dict[str, Any]) -> FittedTo:
        return cls(checkpoint, saved["global_step"], fingerprint(model_weights(saved)))


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, dtypes, shapes and values of weights."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {(*value.shape,)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_fitted_prior(
    run: Path, node: DictConfig, prior: nn.Module, fitted_to: FittedTo, scores: dict[str, Any]
) -> None:
    """Write RUN/prior/; once all files are complete, they replace those of a prior fitted before."""
    config = OmegaConf.create({"second_stage": OmegaConf.to_container(node, resolve=True)})
    with TemporaryDirectory(dir=run, prefix=f".{FOLDER}.") as temporary:
        partial = Path(temporary) / FOLDER
        write_atomically(partial / CONFIG, OmegaConf.to_yaml(config).encode())
        write_checkpoint({"prior": dict(prior.state_dict()), **fitted_to._asdict()}, partial / WEIGHTS)
        write_json(partial / "scores.json", scores)
        if (run / FOLDER).exists():
            (run / FOLDER).rename(partial.with_name("before"))
        partial.rename(run / FOLDER)
    fsync_folder(run)


def read_fitted_prior(run: Path, model: Model, found: FittedTo, trusted: bool) -> tuple[str, Prior]:
    """The name of the prior fitted to a run, and the prior. found: the weights of the model.

    UsageError: it was fitted to other weights, its files are damaged or do not match, or its config names targets that
    a run's config may not (unless trusted).
    """
    folder = run / FOLDER
    again = f"fit it again: python -m vae_lab.fit_prior {shlex.quote(str(run))} overwrite=true"
    config = OmegaConf.masked_copy(read_config(folder / CONFIG, FitPriorConfig, trusted, again), "second_stage")
    check_targets(config)
    saved = load_checkpoint(folder / WEIGHTS, ("prior", *FittedTo._fields), again)
    if saved["fingerprint"] != found.fingerprint:  # samples and metrics would be silently wrong
        raise UsageError(
            f"{folder}: this prior was fitted to the weights of {saved['checkpoint']} at step {saved['step']}, and "
            f"{found.checkpoint} (step {found.step}) holds other weights\n{again},\n"
            'or load the run without it: vae_lab.load(run, prior="trained")'
        )
    layer = require_single_layer(model)
    prior: Prior = build_node(config.second_stage.prior, latent=layer.latent)
    require_latent_kind(prior, layer)
    try:
        prior.load_state_dict(saved["prior"])
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"{folder}: {CONFIG} and {WEIGHTS} do not match\n{again}") from error
    return str(config.second_stage.name), prior.eval().requires_grad_(False)
