"""Metrics besides the bound: use of the codebooks and of the labels."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from vae_lab.core import Latent, Trace
from vae_lab.distributions.codes import OneHotCodes, QuantizedDelta
from vae_lab.distributions.reshaped import UnflattenedBatch
from vae_lab.models.base import Model


class Diagnostics(nn.Module):
    """`codes_used` and `code_perplexity` of codes (the minimum over layers), and `label_gain` of the labels.

    `label_gain`, of conditional models with one stochastic layer: log p(x|z, y) minus log p(x|z, y') for another class
    y' and the same z, mean over images in nats; about 0 if the decoder ignores the labels. Empty for other models.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.num_codes = [latent.num_codes for latent in model.latents]
        self.codes = nn.ModuleList(CodeUsage(num_codes) for num_codes in self.num_codes if num_codes)
        # No check for NaN and no weight of the host's: both would synchronise with the device.
        self.labels = MeanMetric(nan_strategy="disable") if model.conditional and len(model.latents) == 1 else None

    def reset(self) -> None:
        for metric in (*self._usages, self.labels):
            if metric is not None:
                metric.reset()

    def update(self, model: Model, trace: Trace, log_px: Tensor, x: Tensor, y: Tensor | None) -> None:
        """Add one batch and its trace. log_px: log p(x|z), (S, B)."""
        layers = [latent for latent, num_codes in zip(trace.latents, self.num_codes, strict=True) if num_codes]
        for usage, latent in zip(self._usages, layers, strict=True):
            usage.update(code_indices(latent, usage.counts.numel()))
        if self.labels is not None and y is not None:
            other = model.decode(trace.latents[0].z, (y + 1) % model.image.num_classes)
            gain = (log_px - other.log_prob(x)).mean(0)
            self.labels.update(gain, torch.ones_like(gain))

    def compute(self) -> dict[str, float]:
        """Metrics by name, over all processes."""
        found: dict[str, float] = {}
        for usage in self._usages:
            for name, value in usage.compute().items():
                found[name] = min(found.get(name, float("inf")), float(value))
        return found if self.labels is None else {**found, "label_gain": float(self.labels.compute())}

    @property
    def _usages(self) -> list[CodeUsage]:
        return cast("list[CodeUsage]", list(self.codes))


def code_indices(latent: Latent, num_codes: int) -> Tensor:
    """Code indices of a latent's samples, int64."""
    posterior = latent.posterior.base_dist if isinstance(latent.posterior, UnflattenedBatch) else latent.posterior
    if isinstance(posterior, QuantizedDelta):
        return posterior.codes
    return OneHotCodes(num_codes).indices(latent.z.flatten(0, 1))


class CodeUsage(Metric):
    """Counts of code indices over images.

    `compute` returns `codes_used`, the fraction of the codes used at least once, and `code_perplexity`, e to the
    entropy of their frequencies: K if all are used equally often, 1 if only one is used.
    """

    full_state_update = False

    counts: Tensor

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(num_codes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, indices: Tensor) -> None:
        """Add the code indices of one batch, int64, any shape."""
        flat = indices.flatten()
        self.counts.index_add_(0, flat, torch.ones_like(flat))  # bincount would synchronise with the device

    def compute(self) -> dict[str, Tensor]:
        frequencies = self.counts / self.counts.sum()
        return {
            "codes_used": (self.counts > 0).float().mean(),
            "code_perplexity": torch.special.entr(frequencies).sum().exp(),
        }
