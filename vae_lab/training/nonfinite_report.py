"""Where a step stops being finite: the first layer whose output is not, the weights and the gradients that are not."""

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
    """What was not finite, each by its name in the model."""

    weights: list[str] = field(default_factory=list)  # before the step
    layers: list[str] = field(default_factory=list)  # in the order of the forward pass
    gradients: list[str] = field(default_factory=list)  # in the order of the backward pass
    largest: tuple[float, str] = (0.0, "")  # absolute finite value of a layer's output, and whose

    def rows(self) -> Iterator[tuple[str, str]]:
        """Each as a name and a text."""
        yield "weights before it", self._listed(self.weights)
        yield "first layer with such an output", next(iter(self.layers), "none: it arose in the densities or later")
        yield "largest finite output", f"{self.largest[0]:.3g} of {self.largest[1]}" if self.largest[1] else "none"
        yield "gradients", self._listed(self.gradients)

    def _listed(self, names: list[str]) -> str:
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        return f"not finite: {', '.join(names[:MAX_NAMED])}{more}" if names else "finite"

    def check_output(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """A layer has computed something."""
        if not isinstance(output, Tensor):
            return
        if not output.isfinite().all():
            self.layers.append(f"{name} ({type(module).__name__})")
        largest = output.detach().nan_to_num(0, 0, 0).abs().max().item()
        if largest > self.largest[0]:
            self.largest = (largest, name)

    def check_gradient(self, name: str, gradient: Tensor) -> None:
        """A weight has got a gradient."""
        if not gradient.isfinite().all():
            self.gradients.append(name)


@contextmanager
def watch_nonfinite(model: nn.Module) -> Iterator[NonFiniteReport]:
    """Look at every layer and every gradient of what the model does within."""
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
