"""A causal transformer over code indices."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
