"""Locate non-finite values in a step: the first layer with a non-finite output, weights and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MAX_NAMED = 4


@dataclass
class NonFiniteReport:
    """Names of the non-finite weights, layer outputs and gradients of a model."""

    weights: list[str] = field(default_factory=list)  # before the step
    layers: list[str] = field(default_factory=list)  # in the order of the forward pass
    gradients: list[str] = field(default_factory=list)  # in the order of the backward pass
    largest: tuple[float, str] = (0.0, "")  # absolute finite value of a layer's output, and the layer's name

    def rows(self) -> Iterator[tuple[str, str]]:
        """Rows of a table, (label, text)."""
        yield "weights before the step", self._listed(self.weights)
        yield "first non-finite layer output", next(iter(self.layers), "none: it arose in the densities or later")
        yield "largest finite output", f"{self.largest[0]:.3g} of {self.largest[1]}" if self.largest[1] else "none"
        yield "gradients", self._listed(self.gradients)

    def _listed(self, names: list[str]) -> str:
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        return f"non-finite: {', '.join(names[:MAX_NAMED])}{more}" if names else "finite"

    def check_output(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Forward hook: record a non-finite output and the largest finite value."""
        if not isinstance(output, Tensor):
            return
        if not output.isfinite().all():
            self.layers.append(f"{name} ({type(module).__name__})")
        largest = output.detach().nan_to_num(0, 0, 0).abs().max().item()
        if largest > self.largest[0]:
            self.largest = (largest, name)

    def check_gradient(self, name: str, gradient: Tensor) -> None:
        """Gradient hook: record a non-finite gradient."""
        if not gradient.isfinite().all():
            self.gradients.append(name)


@contextmanager
def watch_nonfinite(model: nn.Module) -> Iterator[NonFiniteReport]:
    """Record the non-finite values of all forward and backward passes of the model inside the context."""
    findings = NonFiniteReport([name for name, weight in model.named_parameters() if not weight.isfinite().all()])
    hooks = [
        module.register_forward_hook(partial(findings.check_output, name))
        for name, module in model.named_modules()
        if not any(module.children())
    ]
    hooks += [
        weight.register_hook(partial(findings.check_gradient, name))
        for name, weight in model.named_parameters()
        if weight.requires_grad
    ]
    try:
        with torch.enable_grad():
            yield findings
    finally:
        for hook in hooks:
            hook.remove()
