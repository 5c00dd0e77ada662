"""Estimates of log p(x) by importance sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_lab.models.base import Model

MAX_VALUES_PER_CHUNK = 2**22  # parameters of p(x|z) in memory at a time: 16 MiB, for which caches are still effective


@torch.inference_mode()
def importance_bound(model: Model, x: Tensor, num_samples: int, y: Tensor | None = None) -> Tensor:
    """log (1/K) sum_k p(x, z_k) / q(z_k|x), (B,) in nats: a lower bound that rises with K to log p(x).

    x: (B, C, H, W), binarised as the likelihood expects. num_samples: K. y: labels (B,) of a conditional model, whose
    bound is on log p(x|y). ValueError: K < 1. Burda et al. 2016, arXiv:1509.00519.
    """
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"an importance-weighted bound averages over at least 1 sample; found {num_samples!r}")
    values = model.likelihood.num_channels * model.image.height * model.image.width
    at_once = max(1, MAX_VALUES_PER_CHUNK // values)
    labels = [None] * -(-len(x) // at_once) if y is None else y.split(at_once)
    return torch.cat(
        [
            _bound(model, part, own, num_samples, max(1, at_once // len(part)))
            for part, own in zip(x.split(at_once), labels, strict=True)
        ]
    )


def _bound(model: Model, x: Tensor, y: Tensor | None, num_samples: int, chunk: int) -> Tensor:
    return log_weights(model, x, num_samples, chunk, y).logsumexp(0) - math.log(num_samples)


@torch.inference_mode()
def log_weights(model: Model, x: Tensor, num_samples: int, chunk: int, y: Tensor | None = None) -> Tensor:
    """log p(x, z_k) - log q(z_k|x), (K, B), with `chunk` samples of each image decoded at once."""
    sample_trace = model.trace_sampler(x, y)
    parts = []
    for start in range(0, num_samples, chunk):
        trace = sample_trace(min(chunk, num_samples - start))
        log_ratio = sum(latent.log_ratio for latent in trace.latents)
        parts.append(trace.likelihood.log_prob(x) - log_ratio)
    return torch.cat(parts)


def bounds_by_number(weights: Tensor, numbers: Sequence[int]) -> dict[int, Tensor]:
    """The bound of each image for several K up to the number of weights: means over disjoint groups of K weights.

    weights: (K_max, B). ValueError: K below 1 or above K_max.
    """
    found = {}
    for k in numbers:
        if not 1 <= k <= len(weights):
            raise ValueError(f"K = {k}: expected 1 to {len(weights)}, the number of weights")
        groups = weights[: len(weights) // k * k].unflatten(0, (-1, k)).double()
        found[k] = groups.logsumexp(1).mean(0) - math.log(k)
    return found
