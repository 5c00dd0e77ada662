"""Estimates of log p(x) by importance sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from vae_lab.models.base import Model

MAX_VALUES = {"cpu": 2**20, "cuda": 2**24}  # of the largest activation: for caches of a CPU, for cores of a GPU


@torch.inference_mode()
def importance_bound(model: Model, x: Tensor, num_samples: int, y: Tensor | None = None) -> Tensor:
    """log (1/K) sum_k p(x, z_k) / q(z_k|x), (B,) in nats: a lower bound that rises with K to log p(x).

    x: (B, C, H, W), binarised as the likelihood expects. num_samples: K. y: labels (B,) of a conditional model, whose
    bound is on log p(x|y). ValueError: K < 1. Burda et al. 2016, arXiv:1509.00519.
    """
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"an importance-weighted bound averages over at least 1 sample; found {num_samples!r}")
    at_once = images_at_once(model, x.device)
    labels = [None] * -(-len(x) // at_once) if y is None else y.split(at_once)
    return torch.cat(
        [
            _bound(model, part, own, num_samples, max(1, at_once // len(part)))
            for part, own in zip(x.split(at_once), labels, strict=True)
        ]
    )


@torch.inference_mode()
def images_at_once(model: Model, device: torch.device) -> int:
    """Images to encode or decode together: by the largest activation of one. Leaves the CPU's generator alone."""
    sizes = [model.image.num_dims]

    def record(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    y = torch.zeros(1, dtype=torch.int64, device=device) if model.conditional else None
    with register_module_forward_hook(record), torch.random.fork_rng(devices=[]):
        model(torch.zeros(1, *model.image.shape, device=device), 1, y)
    return max(1, MAX_VALUES.get(device.type, MAX_VALUES["cuda"]) // max(sizes))


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
