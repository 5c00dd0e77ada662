"""Numbers that all processes of a training must agree on; of a single process, itself."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def summed_over_processes(values: Tensor) -> Tensor:
    """The sum of what each process has, in place."""
    if _several():
        dist.all_reduce(values)
    return values


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of what each process has, in place."""
    return summed_over_processes(values).div_(dist.get_world_size()) if _several() else values


def of_first_process(values: Tensor) -> Tensor:
    """What the first process has, in place."""
    if _several():
        dist.broadcast(values, 0)
    return values
