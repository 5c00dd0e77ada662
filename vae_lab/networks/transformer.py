"""A causal transformer over code numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CausalTransformer(nn.Module):
    """Logits of each of T numbers below K from the numbers before it, with a learned vector of each position."""

    def __init__(self, length: int, num_codes: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.num_codes, self.length = num_codes, length
        self.embedding = nn.Embedding(num_codes + 1, width)  # the last stands before the first number
        self.positions = nn.Parameter(torch.empty(length, width))
        # One by one: nn.TransformerEncoder would copy the first, and they would all start alike.
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_codes)
        for weight in (self.embedding.weight, self.positions, self.head.weight):
            nn.init.normal_(weight, std=0.02)  # the first masses are nearly uniform

    def forward(self, indices: Tensor) -> Tensor:
        """(N, t) to (N, min(t + 1, T), K): a last number that has no successor is not looked at."""
        given = indices[:, : self.length - 1].to(self.positions.device)
        start = given.new_full((len(given), 1), self.num_codes)
        features = self.embedding(torch.cat((start, given), 1)) + self.positions[: given.shape[1] + 1]
        mask = nn.Transformer.generate_square_subsequent_mask(features.shape[1], features.device)
        for layer in self.layers:
            features = layer(features, mask, is_causal=True)
        logits: Tensor = self.head(self.norm(features))
        return logits
