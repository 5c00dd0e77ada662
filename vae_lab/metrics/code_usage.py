"""How much of a codebook the images of a split use."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class CodeUsage(Metric):
    """Counts code numbers over images.

    `compute` gives `codes_used`, the share of the codes that were used at least once, and `code_perplexity`, e to the
    entropy of their frequencies: K where all are used alike, 1 where only one is.
    """

    full_state_update = False

    counts: Tensor

    def __init__(self, num_codes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(num_codes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, numbers: Tensor) -> None:
        """One batch's code numbers, int64, any shape."""
        flat = numbers.flatten()
        self.counts.index_add_(0, flat, torch.ones_like(flat))  # bincount would wait for the device

    def compute(self) -> dict[str, Tensor]:
        """Of the numbers seen; at least one."""
        shares = self.counts / self.counts.sum()
        return {
            "codes_used": (self.counts > 0).float().mean(),
            "code_perplexity": torch.special.entr(shares).sum().exp(),
        }
