"""What a split tells of a model besides its bound: how much of its codes and of its labels it uses."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from vae_lab.codes import OneHotCodes, Quantized
from vae_lab.densities.folded import Folded
from vae_lab.metrics.code_usage import CodeUsage
from vae_lab.metrics.label_gain import LabelGain
from vae_lab.models import Model
from vae_lab.trace import Latent, Trace


class Diagnostics(nn.Module):
    """`codes_used` and `code_perplexity` of codes (of several layers, the one that uses the fewest), `label_gain`.

    The last of a conditional model with one stochastic layer. Nothing of other models.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.num_codes = [latent.num_codes for latent in model.latents]
        self.codes = nn.ModuleList(CodeUsage(num_codes) for num_codes in self.num_codes if num_codes)
        self.labels = LabelGain() if model.conditional and len(model.latents) == 1 else None

    def reset(self) -> None:
        """Nothing was seen yet."""
        for metric in self._usages:
            metric.reset()
        if self.labels is not None:
            self.labels.reset()

    def update(self, model: Model, trace: Trace, log_px: Tensor, x: Tensor, y: Tensor | None) -> None:
        """One batch, as the model was evaluated on it. log_px: log p(x|z), (S, B)."""
        layers = [latent for latent, num_codes in zip(trace.latents, self.num_codes, strict=True) if num_codes]
        for usage, latent in zip(self._usages, layers, strict=True):
            usage.update(numbers_of(latent, usage.counts.numel()))
        if self.labels is not None and y is not None:
            other = model.decode(trace.latents[0].z, (y + 1) % model.image.num_classes)
            self.labels.update(log_px, other.log_prob(x))

    def compute(self) -> dict[str, float]:
        """By their names, over all processes."""
        found: dict[str, float] = {}
        for usage in self._usages:
            for name, value in usage.compute().items():
                found[name] = min(found.get(name, float("inf")), float(value))
        return found if self.labels is None else {**found, "label_gain": float(self.labels.compute())}

    @property
    def _usages(self) -> list[CodeUsage]:
        return cast("list[CodeUsage]", list(self.codes))


def numbers_of(latent: Latent, num_codes: int) -> Tensor:
    """The code numbers that a latent's samples are made of, int64."""
    posterior = latent.posterior.flat if isinstance(latent.posterior, Folded) else latent.posterior
    if isinstance(posterior, Quantized):
        return posterior.codes
    return OneHotCodes(num_codes).indices(latent.z.flatten(0, 1))
