"""The options of a second stage, the latents it is fitted to, and the prior it builds.

If the aggregate posterior q(z) = E_x[q(z|x)] differs from p(z), prior samples lie where no image is encoded, and the
rate is larger than necessary: it is the mutual information of x and z, which no prior changes, plus
KL(q(z) || p(z)). Ghosh et al. 2020, arXiv:1903.12436 (ex-post density estimation); Dai & Wipf 2019, arXiv:1903.05789.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from vae_lab.core import Codes, LatentKind, LatentSpec, Prior
from vae_lab.models.base import KIND_NAMES, Model, latent_kind_mismatch
from vae_lab.models.vae import VAE
from vae_lab.second_stage.fitting import CPU, WEIGHTS, Fitting, LatentSamples, ProgressCallback, second_stage_error
from vae_lab.utils.errors import UsageError
from vae_lab.utils.rng import FIT, seed_noise

STAGE_CHOICES: dict[LatentKind, str] = {"vector": "gaussian, mixture or flow", "codes": "autoregressive_codes"}


class EvaluationImages(Protocol):
    """Images of a split, preprocessed as for evaluation."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Batches: x (B, C, H, W), and the labels (B,) for a conditional model, else None."""
        ...

    def __len__(self) -> int:
        """The number of images."""
        ...


@dataclass(frozen=True)
class SecondStage:
    """The options `second_stage.*`: the prior, how it is fitted and how it is evaluated.

    name: used in files and tables. samples_per_image: samples of q(z|x) per image. num_samples: K of the
    importance-weighted bound, estimated on the first num_images of the test split (None: on all).
    ValueError: a count below 1; a name with characters other than letters, digits, _ and -.
    """

    name: str
    prior: Callable[[LatentSpec], Prior]
    fitting: Fitting
    samples_per_image: int = 1
    num_samples: int = 64
    num_images: int | None = 1000

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w-]*", self.name):
            raise ValueError(f"second_stage.name: only letters, digits, _ and - (it names files); found '{self.name}'")
        for key in ("samples_per_image", "num_samples", "num_images"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"second_stage.{key} is at least 1; found {value}")


# --- the latents ------------------------------------------------------------------------------------------


@torch.no_grad()
def sample_posteriors(
    model: VAE,
    images: EvaluationImages,
    samples_per_image: int,
    seed: tuple[int, ...],
    report_progress: ProgressCallback,
) -> LatentSamples:
    """Samples of q(z|x), those of one image adjacent. seed: a stream of random numbers used for nothing else."""
    codes, parts, done = latent_codes(model), [], 0
    for number, (x, y) in enumerate(images):
        seed_noise(x.device, *seed, number)
        z = model.encode(x, y).sample(torch.Size((samples_per_image,))).transpose(0, 1).flatten(0, 1)
        parts.append(z if codes is None else codes.indices(z))
        done += len(x)
        report_progress("latents", done, len(images))
    return LatentSamples(torch.cat(parts), codes)


def latent_codes(model: VAE) -> Codes | None:
    """The codes of the model's latents, or None."""
    codes: Codes | None = getattr(model.posterior, "codes", None)
    return codes


def require_single_layer(model: Model) -> VAE:
    """The model as a VAE. UsageError: several stochastic layers, whose priors are learned inside the decoder."""
    if not isinstance(model, VAE):
        raise UsageError(
            f"second_stage: {type(model).__name__} is a hierarchy (of {len(model.latents)} stochastic layers) whose "
            "priors are learned inside the decoder.\nChoose a model with one layer, as model=mlp, or second_stage=null"
        )
    return model


# --- the priors -------------------------------------------------------------------------------------------


def build_prior(stage: SecondStage, model: VAE, seed: int) -> nn.Module:
    """An unfitted prior for the model's latents.

    UsageError: a prior of another kind of latents, one that needs an encoder or labels, or invalid options.
    """
    seed_noise(CPU, seed, FIT, WEIGHTS)
    try:
        prior = cast("nn.Module", stage.prior(model.latent))
    except ValueError as error:
        raise second_stage_error(error) from error
    require_latent_kind(prior, model)
    if getattr(prior, "needs_encoder", False) or getattr(prior, "needs_labels", False):
        raise UsageError(
            f"second_stage: {type(prior).__name__} depends on the encoder or on labels; a fitted prior has neither.\n"
            f"{_choice(model.latent.kind)}"
        )
    return prior


def require_latent_kind(prior: nn.Module, model: VAE) -> None:
    """UsageError: the prior does not support the model's kind of latents."""
    if (wrong := latent_kind_mismatch(model.posterior, cast("Prior", prior))) is not None:
        raise UsageError(f"second_stage: {wrong}\n{_choice(model.latent.kind)}")


def _choice(kind: LatentKind) -> str:
    stages = STAGE_CHOICES.get(kind)
    return f"Choose second_stage={stages}" if stages else f"No second stage is available for {KIND_NAMES[kind]}"
