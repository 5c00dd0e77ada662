"""Autoregressive networks: MADE over the features of a vector, and a causal transformer over code indices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, linear
from torch.nn.utils.parametrizations import weight_norm

CONTEXT = -1  # degree of the context, on which every unit may depend


class MaskedLinear(nn.Linear):
    """A weight-normalised linear layer with masked weights. mask: (out, in), at least one True per row.

    Masked weights start at zero and get no gradient through the norm, which is thus that of the unmasked weights alone.
    Salimans & Kingma 2016, arXiv:1602.07868.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)
        with torch.no_grad():
            self.weight.mul_(mask)
        weight_norm(self)

    def masked_weight(self) -> Tensor:
        """(out, in)."""
        return self.weight * self.mask

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.masked_weight(), self.bias)


class MADE(nn.Module):
    """Two outputs for each of D features, which depend on the features before it and on a context of C features.

    Germain et al. 2015, arXiv:1502.03509.
    Each unit has a degree: hidden units depend on inputs of at most their own degree, outputs on those of a lower one.
    hidden: widths of the layers, at least D for every degree to occur. backwards: order from the last feature to the
    first. shift: added to the initial bias of the second output.
    """

    degrees: Tensor  # of the features, (D,): 0 is the first in order

    def __init__(
        self, num_features: int, num_context: int, hidden: Sequence[int], backwards: bool = False, shift: float = 0.0
    ) -> None:
        super().__init__()
        order = torch.arange(num_features)
        self.register_buffer("degrees", order.flip(0) if backwards else order, persistent=False)
        inputs = torch.cat((torch.full((num_context,), CONTEXT), self.degrees))
        # Evenly from the context's degree to D - 2: no output depends on the last feature.
        units = [torch.arange(width) * num_features // width + CONTEXT for width in hidden]
        self.first = MaskedLinear(units[0][:, None] >= inputs)
        self.rest = nn.ModuleList(MaskedLinear(b[:, None] >= a) for a, b in pairwise(units))
        self.head = MaskedLinear(self.degrees.repeat(2)[:, None] > units[-1])
        with torch.no_grad():
            self.head.bias[num_features:] += shift

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z: (*, D), context: (*, C), broadcast against each other; (*, D) twice."""
        of_context, of_z = self.first.masked_weight().split((context.shape[-1], z.shape[-1]), 1)
        # Computed once per context, however many samples of z share it.
        features = elu(linear(z, of_z) + linear(context, of_context, self.first.bias))
        for layer in self.rest:
            features = elu(layer(features))
        one, other = self.head(features).chunk(2, -1)
        return one, other


class CausalTransformer(nn.Module):
    """Logits of each of T code indices below K given those before it, with learned position embeddings."""

    def __init__(self, length: int, num_codes: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.num_codes, self.length = num_codes, length
        self.embedding = nn.Embedding(num_codes + 1, width)  # the last is the start token
        self.positions = nn.Parameter(torch.empty(length, width))
        # Not nn.TransformerEncoder, which copies one layer: all would have the same initial weights.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_codes)
        for weight in (self.embedding.weight, self.positions, self.head.weight):
            nn.init.normal_(weight, std=0.02)  # initial probabilities are nearly uniform

    def forward(self, indices: Tensor) -> Tensor:
        """indices (N, t) to logits (N, min(t + 1, T), K); the T-th index has no successor and is ignored."""
        given = indices[:, : self.length - 1].to(self.positions.device)
        start = given.new_full((len(given), 1), self.num_codes)
        features = self.embedding(torch.cat((start, given), 1)) + self.positions[: given.shape[1] + 1]
        mask = nn.Transformer.generate_square_subsequent_mask(features.shape[1], features.device)
        for layer in self.layers:
            features = layer(features, mask, is_causal=True)
        logits: Tensor = self.head(self.norm(features))
        return logits
