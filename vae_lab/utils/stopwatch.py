"""Seconds that the parts of a run took, and its images per second."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Sums of seconds by part (training, validation, pictures, ...), and the throughput of training."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.rates: list[float] = []  # images per second of each epoch
        self.num_images = 0  # trained on

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the duration of the context to `seconds[name]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def training_clock(self) -> float:
        """A clock in seconds that stands still in validation, while pictures are drawn and checkpoints saved."""
        return time.perf_counter() - sum(self.seconds[name] for name in ("validation", "pictures", "checkpoints"))

    @property
    def images_per_second(self) -> float | None:
        """Median over the epochs after the first, which includes start-up costs; the first if it is the only one."""
        rates = self.rates[1:] or self.rates
        return statistics.median(rates) if rates else None
