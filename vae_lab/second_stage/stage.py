"""The options of a second stage, and the prior it builds.

If the aggregate posterior q(z) = E_x[q(z|x)] differs from p(z), prior samples lie where no image is encoded, and the
rate is larger than necessary: it is the mutual information of x and z, which no prior changes, plus
KL(q(z) || p(z)). Ghosh et al. 2020, arXiv:1903.12436 (ex-post density estimation); Dai & Wipf 2019, arXiv:1903.05789.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vae_lab.core import LatentKind, LatentSpec, Prior
from vae_lab.models.base import KIND_NAMES, Model, latent_kind_mismatch
from vae_lab.models.vae import VAE
from vae_lab.second_stage.fitting import WEIGHTS, Fitting, second_stage_error
from vae_lab.utils.errors import UsageError
from vae_lab.utils.rng import FIT, seed_noise

CHOICES: dict[LatentKind, str] = {
    "vector": "Choose second_stage=gaussian, mixture or flow",
    "codes": "Choose second_stage=autoregressive_codes",
    "sphere": f"No second stage is available for {KIND_NAMES['sphere']}",
}


@dataclass(frozen=True)
class SecondStage:
    """The options `second_stage.*`: the prior, how it is fitted and how it is evaluated.

    name: used in files and tables. required: whether a model that it does not fit is an error, or the stage is then
    left out of a training run. samples_per_image: samples of q(z|x) per image. num_samples: K of the
    importance-weighted bound, estimated on the first num_images of the test split (None: on all).
    ValueError: a count below 1; a name with characters other than letters, digits, _ and -.
    """

    name: str
    prior: Callable[[LatentSpec], Prior]
    fitting: Fitting
    samples_per_image: int = 1
    num_samples: int = 64
    num_images: int | None = 1000
    required: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w-]*", self.name):
            raise ValueError(f"second_stage.name: only letters, digits, _ and - (it names files); found '{self.name}'")
        for key in ("samples_per_image", "num_samples", "num_images"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"second_stage.{key} is at least 1; found {value}")


def require_single_layer(model: Model) -> VAE:
    """The model as a VAE. UsageError: several stochastic layers, whose priors are learned inside the decoder."""
    if not isinstance(model, VAE):
        raise UsageError(
            f"second_stage: {type(model).__name__} is a hierarchy (of {len(model.latents)} stochastic layers) whose "
            "priors are learned inside the decoder.\nChoose a model with one layer, as model=mlp, or second_stage=null"
        )
    return model


def build_prior(stage: SecondStage, model: VAE, seed: int) -> Prior:
    """An unfitted prior for the model's latents.

    UsageError: a prior of another kind of latents, one that needs an encoder or labels, or invalid options.
    """
    seed_noise(torch.device("cpu"), seed, FIT, WEIGHTS)
    try:
        prior = stage.prior(model.latent)
    except ValueError as error:
        raise second_stage_error(error) from error
    require_latent_kind(prior, model)
    if prior.needs_encoder or prior.needs_labels:
        raise UsageError(
            f"second_stage: {type(prior).__name__} depends on the encoder or on labels; a fitted prior has neither.\n"
            f"{CHOICES[model.latent.kind]}"
        )
    return prior


def require_latent_kind(prior: Prior, model: VAE) -> None:
    """UsageError: the prior does not support the model's kind of latents."""
    if (wrong := latent_kind_mismatch(model.posterior, prior)) is not None:
        raise UsageError(f"second_stage: {wrong}\n{CHOICES[model.latent.kind]}")
