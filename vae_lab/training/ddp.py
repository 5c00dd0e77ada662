"""Data-parallel training: one process per device, gradients averaged once per optimiser step."""

from __future__ import annotations

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import nn


class AllReduceStrategy(DDPStrategy):
    """Data parallelism without torch's DistributedDataParallel around the module.

    DistributedDataParallel expects one forward and one backward pass per call of the trainer; here a call runs several
    optimiser steps. Gradients are therefore averaged by `reduce_gradients`, in one all-reduce. Each process trains on
    its share of every batch, with the noise that one process would have drawn for it: see `utils.distributed.Share`.
    """

    def configure_ddp(self) -> None:
        """Broadcast the weights and buffers of the first process."""
        assert self.model is not None
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            dist.broadcast(tensor.data, 0)

    def reduce_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replace each gradient by its mean over processes."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world_size
        parts = flat.split([g.numel() for g in gradients])
        torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])
