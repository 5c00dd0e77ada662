"""Fully connected networks, and the option types and initialisation shared by all networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from vae_lab.core import ImageShape

Activation = Callable[[], nn.Module]
Initializer = Callable[[Tensor], Tensor]
Normalization = Callable[[int], nn.Module]


def initialize(network: nn.Module, initializer: Initializer | None) -> None:
    """Apply `initializer` to every weight matrix and kernel and zero the biases; None keeps torch's defaults."""
    if initializer is None:
        return
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            initializer(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def dense(sizes: Sequence[int], activation: Activation) -> list[nn.Module]:
    """Linear layers between consecutive sizes, each followed by an activation."""
    return [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), activation())]


class MLPEncoder(nn.Sequential):
    """Flatten, hidden layers, a linear head."""

    def __init__(
        self,
        in_shape: ImageShape,
        out_features: int,
        hidden: Sequence[int] = (400,),
        activation: Activation = nn.ReLU,
        initializer: Initializer | None = None,
    ) -> None:
        sizes = [math.prod(in_shape), *hidden]
        super().__init__(nn.Flatten(), *dense(sizes, activation), nn.Linear(sizes[-1], out_features))
        initialize(self, initializer)


class MLPDecoder(nn.Sequential):
    """Hidden layers, a linear head, unflatten to the image shape."""

    def __init__(
        self,
        in_features: int,
        out_shape: ImageShape,
        hidden: Sequence[int] = (400,),
        activation: Activation = nn.ReLU,
        initializer: Initializer | None = None,
    ) -> None:
        sizes = [in_features, *hidden]
        head = nn.Linear(sizes[-1], math.prod(out_shape))
        super().__init__(*dense(sizes, activation), head, nn.Unflatten(1, out_shape))
        initialize(self, initializer)
