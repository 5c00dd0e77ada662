"""Several processes as one: reductions, each one's share of a batch, and its share of the noise.

Everything is the identity in a single process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


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


def all_blocks(own: Sequence[T]) -> list[T]:
    """The blocks of all processes in order, of which each has number `rank`, rank + world_size, ..."""
    if not _is_distributed():
        return list(own)
    found: list[Sequence[T]] = [()] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return [found[number % len(found)][number // len(found)] for number in range(sum(map(len, found)))]


class Share(NamedTuple):
    """The images of one process in every batch of all: number `rank`, rank + world_size, ..."""

    rank: int = 0
    world_size: int = 1

    def rows(self, total: int) -> slice:
        """Its rows of a batch of `total` images; the first, of weight 0, if there are fewer images than processes."""
        return slice(self.rank if self.rank < total else 0, None, self.world_size)

    def weight(self, total: int) -> float:
        """Of its mean in the mean over processes, so that the latter is the mean over the images."""
        return len(range(self.rank, total, self.world_size)) * self.world_size / total

    def noise(self, total: int, num_samples: int) -> AbstractContextManager[object]:
        """A context in which it draws the noise that one process would draw for these images in the whole batch."""
        return nullcontext() if self.world_size == 1 else _BatchNoise(self, total, num_samples)


ONE_PROCESS = Share()


def _normal(values: Tensor) -> Tensor:
    return values.normal_()


def _uniform(values: Tensor) -> Tensor:
    return values.uniform_()


Fill = Callable[..., Tensor]
FILLS = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.exponential_, torch.Tensor.random_)
FACTORIES: dict[Any, tuple[Callable[..., Tensor], Fill]] = {
    torch.randn: (torch.empty, _normal),
    torch.rand: (torch.empty, _uniform),
    torch.randn_like: (torch.empty_like, _normal),
    torch.rand_like: (torch.empty_like, _uniform),
}


class _BatchNoise(TorchFunctionMode):
    """Random tensors are drawn for all images of a batch, and each process keeps the part of its own.

    Where the shape of a tensor shows the images: (..., S, B, ...), (S * B, ...) or (B, ...) for S samples of B images.
    """

    def __init__(self, share: Share, total: int, num_samples: int) -> None:
        super().__init__()
        self.total, self.num_samples, self.rows = total, num_samples, share.rows(total)
        self.num_images = len(range(total)[self.rows])

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in FACTORIES:
            create, fill = FACTORIES[func]
            return self._fill(create(*args, **options), fill)
        if func in FILLS:
            return self._fill(args[0], func, *args[1:], **options)
        return func(*args, **options)

    def _fill(self, values: Tensor, fill: Fill, *args: Any, **options: Any) -> Tensor:
        own, shape = (self.num_samples, self.num_images), tuple(values.shape)
        axes = [axis for axis in range(len(shape) - 1) if shape[axis : axis + 2] == own]
        if axes:
            before, rest = shape[: axes[0] + 1], shape[axes[0] + 2 :]
        elif shape[:1] in ((self.num_images * self.num_samples,), (self.num_images,)):
            before, rest = (shape[0] // self.num_images,), shape[1:]
        else:
            return fill(values, *args, **options)
        whole = fill(values.new_empty((*before, self.total, *rest)), *args, **options)
        return values.copy_(whole[(slice(None),) * len(before) + (self.rows,)].reshape(shape))
