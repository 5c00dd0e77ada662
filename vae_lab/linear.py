"""A linear layer by the faster of torch's two CPU libraries.

torch multiplies float32 matrices with MKL, which on AMD's processors leaves half of the vector units unused. oneDNN,
which torch has for convolutions, uses them all: 1.7 times as fast for the layers of an MLP on MNIST.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from vae_lab.machine import is_amd

LEAST_WORK = 10_000_000  # multiplications below which handing the tensors over costs more than it saves


class Linear(nn.Linear):
    """torch.nn.Linear: the same weights, names and, to rounding, results.

    oneDNN's has no second derivative; `torch.backends.mkldnn.flags(enabled=False)` keeps to torch's own.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_features) to (B, out_features)."""
        if not self._by_onednn(input):
            return super().forward(input)
        output: Tensor = linear(input.to_mkldnn(), self.weight, self.bias).to_dense()
        return output

    def _by_onednn(self, x: Tensor) -> bool:
        return (
            not (torch.compiler.is_compiling() or is_traced() or torch.is_autocast_enabled("cpu"))
            and is_amd()
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.dim() == 2
            and len(x) * self.weight.numel() >= LEAST_WORK
            and onednn_enabled()
        )


def onednn_enabled() -> bool:
    """Whether torch has oneDNN and is allowed to use it."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def is_traced() -> bool:
    """Whether torch.jit follows this call, for a graph that others are to read."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]
