"""What regularizers ask of a model and of their options, said once; and draws from the prior to compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_lab.core import Latent, LatentKind, LatentSpec, TrainingSpec


def require_number(name: str, option: str, value: float, above: bool = False) -> None:
    """ValueError unless an option of the regularizer `name` is finite and at least 0; above: more than 0."""
    if not math.isfinite(value) or value < 0 or (above and value == 0):
        raise ValueError(
            f"objective.regularizers.{name}.{option} is a number {'above' if above else 'of at least'} 0; found {value}"
        )


def require_single_latent(spec: TrainingSpec, name: str, kinds: tuple[LatentKind, ...] = ("vector",)) -> LatentSpec:
    """The one latent that a regularizer looks at. ValueError: several layers, or a kind that it makes no sense of."""
    if len(spec.latents) != 1:
        raise ValueError(
            f"objective.regularizers.{name} looks at one latent, and this model has {len(spec.latents)} layers of "
            "them.\nChoose a model of one layer (model=mlp, conv or resnet), or leave the regularizer out"
        )
    [latent] = spec.latents
    if latent.kind not in kinds:
        raise ValueError(
            f"objective.regularizers.{name} is of latents of the kind {' or '.join(kinds)}, and these are of the kind "
            f"{latent.kind}.\nChoose another model/posterior, such as diagonal_gaussian, or leave the regularizer out"
        )
    return latent


def sample_prior(latent: Latent, batch: Sequence[int]) -> Tensor:
    """Draws from p(z) for a batch (S, B) or (B,): (*batch, *event), without a gradient.

    ValueError: a prior that has no samples.
    """
    own = len(latent.prior.batch_shape)  # of a prior that depends on the labels: a draw for each image
    try:
        return latent.prior.sample(torch.Size(batch[: len(batch) - own])).detach()
    except NotImplementedError as error:
        raise ValueError(
            "model.prior: a regularizer compares with draws from the prior, and this one has no samples.\n"
            "Choose one that has, such as model/prior=standard_normal"
        ) from error
