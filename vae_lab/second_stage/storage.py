"""RUN/prior/: the prior fitted to the latents of a run, and the model weights it was fitted to.

config.yaml holds its config (`second_stage`), weights.ckpt its weights and a fingerprint of the model's, scores.json
the results (not summary.json, which marks a run directory). The folder is written atomically.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from yaml import YAMLError  # type: ignore[import-untyped]

from vae_lab.config.safety import checked_run_config
from vae_lab.config.validation import check_targets
from vae_lab.core import Prior
from vae_lab.models.base import Model
from vae_lab.runs.checkpoint_io import copy_to_cpu, find_damage, load_checkpoint, write_checkpoint
from vae_lab.second_stage.stage import require_latent_kind, require_single_layer
from vae_lab.training.build import build_node
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import fsync_folder, write_atomically, write_json

FOLDER, CONFIG, WEIGHTS = "prior", "config.yaml", "weights.ckpt"


class ModelFingerprint(NamedTuple):
    """The model weights whose latents a prior was fitted to."""

    checkpoint: str  # file name
    step: int
    fingerprint: str

    @classmethod
    def of(cls, checkpoint: str, step: int, weights: Mapping[str, Tensor]) -> ModelFingerprint:
        return cls(checkpoint, step, fingerprint(weights))


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, dtypes, shapes and values of weights."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        values = value.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {(*values.shape,)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_fitted_prior(
    run: Path, node: DictConfig, prior: nn.Module, fitted_to: ModelFingerprint, scores: dict[str, Any]
) -> None:
    """Write RUN/prior/; once all files are complete, they replace those of a prior fitted before."""
    config = OmegaConf.create({"second_stage": OmegaConf.to_container(node, resolve=True)})
    state = {name: copy_to_cpu(value) for name, value in prior.state_dict().items()}
    with TemporaryDirectory(dir=run, prefix=f".{FOLDER}.") as temporary:
        partial = Path(temporary) / FOLDER
        write_atomically(partial / CONFIG, OmegaConf.to_yaml(config).encode())
        write_checkpoint({"prior": state, **fitted_to._asdict()}, partial / WEIGHTS)
        write_json(partial / "scores.json", scores)
        if (run / FOLDER).exists():
            (run / FOLDER).rename(partial.with_name("before"))
        partial.rename(run / FOLDER)
    fsync_folder(run)


def read_fitted_prior(run: Path, model: Model, found: ModelFingerprint, trusted: bool) -> tuple[str, Prior]:
    """The name of the prior fitted to a run, and the prior. found: the weights of the model.

    UsageError: it was fitted to other weights, its files are damaged or do not match, or its config names targets that
    a run's config may not (unless trusted).
    """
    folder = run / FOLDER
    again = f"fit it again: python -m vae_lab.fit_prior run={run} overwrite=true"
    config = _read_config(folder / CONFIG, again, trusted)
    if (damaged := find_damage(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else "no such file") is not None:
        raise UsageError(f"{folder / WEIGHTS}: damaged or incomplete ({damaged})\n{again}")
    saved = load_checkpoint(folder / WEIGHTS, needed=("prior", *ModelFingerprint._fields))
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


def _read_config(path: Path, again: str, trusted: bool) -> DictConfig:
    try:
        written = OmegaConf.load(path)
        config = written if trusted else checked_run_config(written, path)
        named = all(OmegaConf.select(config, f"second_stage.{key}") for key in ("name", "prior._target_"))
    except (OmegaConfBaseException, YAMLError, RecursionError, OSError, UnicodeError) as error:
        raise UsageError(f"{path}: {str(error).partition(chr(10))[0]}\n{again}") from error
    if not named:
        raise UsageError(f"{path}: second_stage.name or second_stage.prior._target_ is missing\n{again}")
    assert isinstance(config, DictConfig)
    check_targets(config)
    return config
