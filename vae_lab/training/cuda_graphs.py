"""Record a training step once as a CUDA graph, then replay it with no Python between its kernels.

With small networks a GPU waits for Python; a replayed step takes only the time of its kernels.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UP_STEPS = 3  # eager steps, in which libraries choose their kernels and the optimiser allocates its state

Outputs = tuple[Tensor | None, ...]


class CUDAGraphRunner:
    """Calls `function(images, labels, numbers)`: three times eagerly, then by replaying a recorded graph.

    Warm-up calls are real steps. Noise follows the seed of the device's generator at each call. The function must not
    read back from the device; the images must keep their shape, and so must the labels (or be None). Under autocast,
    its cache must be off (Lightning turns it off): otherwise rounded weights would be recorded as constants.
    """

    def __init__(
        self, function: Callable[[Tensor, Tensor | None, Sequence[Tensor]], Outputs], device: torch.device
    ) -> None:
        self._function, self._device = function, device
        self._stream = torch.cuda.Stream(device)
        self._calls = 0

    def __call__(self, images: Tensor, labels: Tensor | None, numbers: Sequence[float]) -> Outputs:
        """images: uint8 (N, C, H, W); labels: (N,); numbers: floats that may change between calls."""
        if self._calls == 0:  # the memory that the graph reads
            self._images = torch.empty_like(images, device=self._device)
            self._labels = None if labels is None else torch.empty_like(labels, device=self._device)
            self._numbers = [torch.zeros((), device=self._device) for _ in numbers]
        self._images.copy_(images, non_blocking=True)
        if self._labels is not None and labels is not None:
            self._labels.copy_(labels, non_blocking=True)
        for tensor, number in zip(self._numbers, numbers, strict=True):
            tensor.fill_(number)
        self._calls += 1
        if self._calls <= WARM_UP_STEPS:
            return self._run_eagerly()
        if self._calls == WARM_UP_STEPS + 1:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                self._outputs = self._function(self._images, self._labels, self._numbers)
        self._graph.replay()
        return tuple(None if it is None else it.clone() for it in self._outputs)  # the next replay overwrites them

    def _run_eagerly(self) -> Outputs:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            outputs = self._function(self._images, self._labels, self._numbers)
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return outputs
