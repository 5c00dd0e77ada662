"""A training step recorded once as a CUDA graph, then launched as a whole, with no Python between its kernels.

Small networks leave a GPU waiting for Python; replayed, a step costs what its kernels cost.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP = 3  # steps run as they are, in which libraries choose their kernels and the optimiser makes its state

Outputs = tuple[Tensor | None, ...]


class CUDAGraphRunner:
    """Calls `function(images, labels, numbers)`, from the fourth time on by replaying what it did.

    Every call counts: those of the warm-up are real steps. Noise follows the seed that the device's generator has at
    each call. The function must not read back from the device, and the images must keep their shape, as the labels must
    (or be None). Under autocast,
    its cache must be off (Lightning's is): rounded weights would be recorded as constants.
    """

    def __init__(
        self, function: Callable[[Tensor, Tensor | None, Sequence[Tensor]], Outputs], device: torch.device
    ) -> None:
        self._function, self._device = function, device
        self._calls = 0
        self._images: Tensor | None = None
        self._labels: Tensor | None = None
        self._numbers: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor | None, numbers: Sequence[float]) -> Outputs:
        """images: uint8 (N, C, H, W); labels: (N,); numbers: floats that may differ from call to call."""
        self._hand_over(images, labels, numbers)
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._as_it_is()
        if self._graph is None:
            self._record()
        assert self._graph is not None
        self._graph.replay()
        return tuple(None if it is None else it.clone() for it in self._outputs)  # the next replay writes over them

    def _hand_over(self, images: Tensor, labels: Tensor | None, numbers: Sequence[float]) -> None:
        """Into the memory that the graph reads."""
        if self._images is None:
            self._images = torch.empty_like(images, device=self._device)
            self._labels = None if labels is None else torch.empty_like(labels, device=self._device)
            self._numbers = [torch.zeros((), device=self._device) for _ in numbers]
            self._stream = torch.cuda.Stream(self._device)
        self._images.copy_(images, non_blocking=True)
        if self._labels is not None and labels is not None:
            self._labels.copy_(labels, non_blocking=True)
        for tensor, number in zip(self._numbers, numbers, strict=True):
            tensor.fill_(number)

    def _as_it_is(self) -> Outputs:
        assert self._images is not None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            outputs = self._function(self._images, self._labels, self._numbers)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return outputs

    def _record(self) -> None:
        assert self._images is not None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._outputs = self._function(self._images, self._labels, self._numbers)
        self._graph = graph
