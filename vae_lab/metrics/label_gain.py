"""How much a conditional decoder makes of the labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class LabelGain(Metric):
    """log p(x|z, y) less that with the label of another class and the same z, in nats per image: a mean over images.

    About 0 where the decoder ignores its labels.
    """

    full_state_update = False

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, own: Tensor, other: Tensor) -> None:
        """log p(x|z, y) with the labels of the images and with others, (S, B) each."""
        self.total += (own - other).mean(0).sum()
        self.count += own.shape[1]

    def compute(self) -> Tensor:
        """In nats per image, ()."""
        return self.total / self.count
