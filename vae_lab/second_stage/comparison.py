"""A model judged under one prior and another: same images, same z, so that what differs is the prior."""

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

IMAGES_AT_ONCE = 50  # of which the importance bound is estimated between two looks at the clock


class ElboSettings(NamedTuple):
    """How an ELBO was estimated during training, so that it is estimated likewise."""

    num_samples: int
    kl: KLEstimate
    seed: int


@contextmanager
def with_prior(model: VAE, prior: nn.Module) -> Iterator[VAE]:
    """The model with another prior, for a while."""
    before = model.prior
    model.prior = cast("Prior", prior)
    try:
        yield model
    finally:
        model.prior = before


def has_bound(model: VAE) -> bool:
    """Whether an ELBO is a bound on log p(x): posterior and prior have densities, or masses."""
    return not parts_without_density(model)


@torch.no_grad()
def elbo_terms(
    model: VAE, images: EvaluationImages, estimate: ElboSettings, report_progress: ProgressCallback
) -> dict[str, float | None]:
    """`elbo`, `log_px`, `kl` in nats per image, with the noise that a run's own evaluation of the images has.

    None where there is no bound.
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
    # The class's own: an instance's would wait for processes that have trained beside this one.
    means = {name: float(value) for name, value in ElboSums.compute(sums).items()}
    bounded = has_bound(model)
    return {name: means[name] if bounded or name == "log_px" else None for name in ("elbo", "log_px", "kl")}


def mean_importance_bound(
    model: VAE, images: EvaluationImages, num_samples: int, seed: int, report_progress: ProgressCallback
) -> float | None:
    """The importance-weighted bound in nats, mean over images, with noise that is the same under another prior.

    None where there is no bound.
    """
    if not has_bound(model):
        return None
    total, done = 0.0, 0
    for number, (x, y) in enumerate(images):
        for part in torch.arange(len(x), device=x.device).split(IMAGES_AT_ONCE):
            seed_noise(x.device, seed, FIT, IMPORTANCE, number, int(part[0]))
            bound = importance_bound(model, x[part], num_samples, y=None if y is None else y[part])
            total += float(bound.double().sum())
            done += len(part)
            report_progress("importance bound", done, len(images))
    return total / done
