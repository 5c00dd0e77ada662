"""Checks of the latents and options of regularizers, and prior samples to compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_lab.core import Latent, LatentKind, LatentSpec, TrainingSpec


def require_number(name: str, option: str, value: float, above: bool = False) -> None:
    """Raise ValueError unless an option of the regularizer `name` is finite and at least 0; above: more than 0."""
    if not math.isfinite(value) or value < 0 or (above and value == 0):
        raise ValueError(
            f"objective.regularizers.{name}.{option} is a number {'above' if above else 'of at least'} 0; found {value}"
        )


def require_single_latent(spec: TrainingSpec, name: str, kinds: tuple[LatentKind, ...] = ("vector",)) -> LatentSpec:
    """The only latent of the model. ValueError: several layers, or a kind that is not in `kinds`."""
    if len(spec.latents) != 1:
        raise ValueError(
            f"objective.regularizers.{name} supports one layer of latents, and this model has {len(spec.latents)} "
            "layers.\nChoose a model of one layer (model=mlp, conv or resnet), or remove the regularizer"
        )
    [latent] = spec.latents
    if latent.kind not in kinds:
        raise ValueError(
            f"objective.regularizers.{name} supports latents of the kind {' or '.join(kinds)}; found the kind "
            f"{latent.kind}.\nChoose another model/posterior, such as diagonal_gaussian, or remove the regularizer"
        )
    return latent


def sample_prior(latent: Latent, batch: Sequence[int]) -> Tensor:
    """Samples from p(z) for a batch (S, B) or (B,): (*batch, *event), detached.

    ValueError: a prior that has no samples.
    """
    own = len(latent.prior.batch_shape)  # a prior conditional on labels has a distribution per image
    # Normal.sample checks its scales on the host, which a GPU would wait for and a CUDA graph cannot record.
    draw = latent.prior.rsample if latent.prior.has_rsample else latent.prior.sample
    try:
        return draw(torch.Size(batch[: len(batch) - own])).detach()
    except NotImplementedError as error:
        raise ValueError(
            "model.prior: a regularizer needs prior samples, and this prior has no samples.\n"
            "Choose one that has, such as model/prior=standard_normal"
        ) from error
