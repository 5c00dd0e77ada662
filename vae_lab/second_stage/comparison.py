"""Evaluation of a model under different priors, with the same images and posterior samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import nn

from vae_lab.core import Prior
from vae_lab.metrics.elbo_sums import ElboSums
from vae_lab.metrics.importance import importance_bound
from vae_lab.models.base import parts_without_density
from vae_lab.models.vae import VAE
from vae_lab.objectives.bounds import KLEstimate, bound_terms, elbo
from vae_lab.second_stage.fitting import IMPORTANCE, ProgressCallback
from vae_lab.second_stage.stage import EvaluationImages
from vae_lab.utils.rng import EVALUATE, FIT, seed_noise

BATCH_SIZE = 50  # per estimate of the importance bound, between two progress reports


class ElboSettings(NamedTuple):
    """Settings of the ELBO estimate during training, reused here."""

    num_samples: int
    kl: KLEstimate
    seed: int


@contextmanager
def with_prior(model: VAE, prior: nn.Module) -> Iterator[VAE]:
    """Replace the model's prior within the context."""
    before = model.prior
    model.prior = cast("Prior", prior)
    try:
        yield model
    finally:
        model.prior = before


def has_bound(model: VAE) -> bool:
    """Whether the ELBO is a bound on log p(x): all parts have a density or a probability mass."""
    return not parts_without_density(model)


@torch.no_grad()
def elbo_terms(
    model: VAE, images: EvaluationImages, estimate: ElboSettings, report_progress: ProgressCallback
) -> dict[str, float | None]:
    """`elbo`, `log_px`, `kl` in nats per image, with the noise of the run's own evaluation.

    `elbo` and `kl` are None where the ELBO is not a bound.
    """
    sums, done = ElboSums.for_latents(model.latents), 0
    for number, (x, y) in enumerate(images):
        sums.to(x.device)
        seed_noise(x.device, estimate.seed, EVALUATE, 0, number)
        trace = model(x, estimate.num_samples, y)
        terms = bound_terms(trace, x, estimate.kl, log_ratio=False)
        sums.update(trace, terms, -elbo(terms))
        done += len(x)
        report_progress("ELBO", done, len(images))
    # Called on the class: the instance's `compute` would synchronise with the other training processes.
    means = {name: float(value) for name, value in ElboSums.compute(sums).items()}
    bounded = has_bound(model)
    return {name: means[name] if bounded or name == "log_px" else None for name in ("elbo", "log_px", "kl")}


def mean_importance_bound(
    model: VAE, images: EvaluationImages, num_samples: int, seed: int, report_progress: ProgressCallback
) -> float | None:
    """Importance-weighted bound in nats, mean over images; the same noise under every prior.

    None where the bound does not exist.
    """
    if not has_bound(model):
        return None
    total, done = 0.0, 0
    for number, (x, y) in enumerate(images):
        for part in torch.arange(len(x), device=x.device).split(BATCH_SIZE):
            seed_noise(x.device, seed, FIT, IMPORTANCE, number, int(part[0]))
            bound = importance_bound(model, x[part], num_samples, y=None if y is None else y[part])
            total += float(bound.double().sum())
            done += len(part)
            report_progress("importance bound", done, len(images))
    return total / done
