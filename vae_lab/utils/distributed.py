"""Numbers that all processes of a training must agree on; of a single process, itself."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of what each process has, in place."""
    if _is_distributed():
        dist.all_reduce(values)
    return values


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean of what each process has, in place."""
    return all_reduce_sum(values).div_(dist.get_world_size()) if _is_distributed() else values


def broadcast_from_first(values: Tensor) -> Tensor:
    """What the first process has, in place."""
    if _is_distributed():
        dist.broadcast(values, 0)
    return values
