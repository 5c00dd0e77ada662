"""A linear layer that uses the faster of torch's two CPU libraries.

torch multiplies float32 matrices with MKL, which leaves half of the vector units unused on AMD processors. oneDNN,
which torch uses for convolutions and compiled models, uses them all: twice as fast for the layers of an MLP on MNIST.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vae_lab.utils.cpu import is_amd

MIN_MULTIPLICATIONS = (
    10_000_000  # multiplications below which oneDNN's reordering of the weights costs more than it saves
)


class Linear(nn.Linear):
    """torch.nn.Linear: the same weights, names and, up to rounding, results.

    The oneDNN path has no second derivative (RuntimeError) and no forward-mode derivative (torch.func gets torch's own
    layer). `torch.backends.mkldnn.flags(enabled=False)` disables it.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self._by_onednn(input):
            return super().forward(input)
        output: Tensor = OneDNNLinear.apply(input, self.weight, self.bias)
        return output

    def _by_onednn(self, x: Tensor) -> bool:
        return (
            not (torch.compiler.is_compiling() or is_tracing() or torch.is_autocast_enabled("cpu"))
            and not is_transformed()
            and is_amd()
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.dim() == 2
            and len(x) * self.weight.numel() >= MIN_MULTIPLICATIONS
            and onednn_enabled()
        )


class OneDNNLinear(Function):
    """x W^T + b and its gradient, by the operator that torch.compile uses on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x: (B, in), weight: (out, in), bias: (out,)."""
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """gradient: (B, out)."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            onednn_linear(gradient, weight.t()) if of_x else None,
            onednn_linear(gradient.t(), x.t()) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b by oneDNN."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output


def onednn_enabled() -> bool:
    """Whether oneDNN and its linear operator are available and enabled."""
    return (
        torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def is_tracing() -> bool:
    """Whether torch.jit is tracing, for a graph that other programs read."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def is_transformed() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0
