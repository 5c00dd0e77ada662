"""A linear layer by the faster of torch's two CPU libraries.

torch multiplies float32 matrices with MKL, which on AMD's processors leaves half of the vector units unused. oneDNN,
which torch has for convolutions and compiled models, uses them all: twice as fast for the layers of an MLP on MNIST.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vae_lab.utils.cpu import is_amd

LEAST_WORK = 10_000_000  # multiplications below which oneDNN's own arrangement of the weights costs more than it saves


class Linear(nn.Linear):
    """torch.nn.Linear: the same weights, names and, to rounding, results.

    oneDNN's has no second derivative (RuntimeError), nor a forward one (what torch.func transforms is torch's own).
    `torch.backends.mkldnn.flags(enabled=False)` keeps to torch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_features) to (B, out_features)."""
        if not self._by_onednn(input):
            return super().forward(input)
        output: Tensor = OneDNNLinear.apply(input, self.weight, self.bias)
        return output

    def _by_onednn(self, x: Tensor) -> bool:
        return (
            not (torch.compiler.is_compiling() or is_traced() or torch.is_autocast_enabled("cpu"))
            and not is_transformed()
            and is_amd()
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.dim() == 2
            and len(x) * self.weight.numel() >= LEAST_WORK
            and onednn_enabled()
        )


class OneDNNLinear(Function):
    """x W^T + b and its gradient, each product by the operator that torch.compile uses on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x: (B, in), weight: (out, in), bias: (out,)."""
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """gradient: (B, out)."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if of_x else None,
            product(gradient.t(), x.t()) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b by oneDNN."""
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output


def onednn_enabled() -> bool:
    """Whether torch has oneDNN and the operator, and is allowed to use them."""
    return (
        torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def is_traced() -> bool:
    """Whether torch.jit follows this call, for a graph that others are to read."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.autograd.forward_ad._current_level >= 0
