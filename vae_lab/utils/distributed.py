"""Reductions over the processes of a distributed run; the identity in a single process."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if _is_distributed():
        dist.all_reduce(values)
    return values


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean over processes, in place."""
    return all_reduce_sum(values).div_(dist.get_world_size()) if _is_distributed() else values


def broadcast_from_first(values: Tensor) -> Tensor:
    """The values of the first process, in place."""
    if _is_distributed():
        dist.broadcast(values, 0)
    return values
