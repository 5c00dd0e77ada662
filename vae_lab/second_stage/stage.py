"""A second stage: a prior fitted to the latents of a trained model, in the place of the one it was trained with.

Where the aggregate posterior q(z) = E_x[q(z|x)] is not p(z), samples of p(z) are decoded from latents that no image
has, and the rate is larger than it need be: it is the mutual information of x and z, which no prior changes, plus
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
from vae_lab.models.base import KIND_NAMES, Model, space_mismatch
from vae_lab.models.vae import VAE
from vae_lab.second_stage.fitting import CPU, WEIGHTS, Fitting, LatentSamples, ProgressCallback, as_second_stage_error
from vae_lab.utils.errors import UsageError
from vae_lab.utils.rng import FIT, seed_noise

STAGES_OF: dict[LatentKind, str] = {"vector": "gaussian, mixture or flow", "codes": "autoregressive_codes"}


class EvaluationImages(Protocol):
    """Images of a split as the model sees them when evaluated."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Batches: x (B, C, H, W), and the labels (B,) of a conditional model."""
        ...

    def __len__(self) -> int:
        """The number of images."""
        ...


@dataclass(frozen=True)
class SecondStage:
    """What is fitted to which latents, and how it is judged; the options are those of `second_stage.*`.

    name: of files and tables. samples_per_image: draws of q(z|x) of each training image. num_samples: K of the
    importance-weighted bound, estimated on the first num_images of the test split (None: on all).
    ValueError: a count below 1; a name that is no word.
    """

    name: str
    prior: Callable[[LatentSpec], Prior]
    fitting: Fitting
    samples_per_image: int = 1
    num_samples: int = 64
    num_images: int | None = 1000

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w-]*", self.name):
            raise ValueError(f"second_stage.name is part of a file's, in letters, digits, _ and -; found '{self.name}'")
        for key in ("samples_per_image", "num_samples", "num_images"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"second_stage.{key} is at least 1; found {value}")


# --- the latents ------------------------------------------------------------------------------------------


@torch.no_grad()
def draw_latents(
    model: VAE,
    images: EvaluationImages,
    samples_per_image: int,
    seed: tuple[int, ...],
    report_progress: ProgressCallback,
) -> LatentSamples:
    """Draws of q(z|x), those of one image side by side. seed: numbers that no other noise has."""
    codes, parts, done = latent_codes(model), [], 0
    for number, (x, y) in enumerate(images):
        seed_noise(x.device, *seed, number)
        z = model.encode(x, y).sample(torch.Size((samples_per_image,))).transpose(0, 1).flatten(0, 1)
        parts.append(z if codes is None else codes.indices(z))
        done += len(x)
        report_progress("latents", done, len(images))
    return LatentSamples(torch.cat(parts), codes)


def latent_codes(model: VAE) -> Codes | None:
    """Those that its latents consist of, if they do."""
    codes: Codes | None = getattr(model.posterior, "codes", None)
    return codes


def require_single_layer(model: Model) -> VAE:
    """The model. UsageError: one with several stochastic layers, whose priors are learned inside the decoder."""
    if not isinstance(model, VAE):
        raise UsageError(
            f"second_stage: {type(model).__name__} is a hierarchy (of {len(model.latents)} stochastic layers), whose "
            "priors are learned inside the decoder.\nChoose a model of one layer, as model=mlp, or second_stage=none"
        )
    return model


# --- the priors -------------------------------------------------------------------------------------------


def build_prior(stage: SecondStage, model: VAE, seed: int) -> nn.Module:
    """A prior of the model's latents, not yet fitted.

    UsageError: it is of another space, asks for more than latents, or refuses its options.
    """
    seed_noise(CPU, seed, FIT, WEIGHTS)
    try:
        prior = cast("nn.Module", stage.prior(model.latent))
    except ValueError as error:
        raise as_second_stage_error(error) from error
    require_latent_kind(prior, model)
    if getattr(prior, "needs_encoder", False) or getattr(prior, "needs_labels", False):
        raise UsageError(
            f"second_stage: {type(prior).__name__} depends on the encoder or on labels, a fitted prior on neither.\n"
            f"{_choice(model.latent.kind)}"
        )
    return prior


def require_latent_kind(prior: nn.Module, model: VAE) -> None:
    """UsageError unless a prior lives where the model's latents do."""
    if (wrong := space_mismatch(model.posterior, cast("Prior", prior))) is not None:
        raise UsageError(f"second_stage: {wrong}\n{_choice(model.latent.kind)}")


def _choice(kind: LatentKind) -> str:
    stages = STAGES_OF.get(kind)
    return f"Choose second_stage={stages}" if stages else f"No second stage is fitted to {KIND_NAMES[kind]}"
