"""CPU resources of the process: cores, threads and memory. They change the speed of a computation, not its results."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

# glibc's mallopt, malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
MAX_HEAP_TOP = 2**31 - 1  # bytes, the largest int that glibc takes
HEAP_GROWTH = 64 * 2**20  # bytes by which the heap grows


def num_cores() -> int:
    """Physical cores that this process may use, by CPU affinity and container limits, at least 1."""
    from joblib import cpu_count

    return max(1, int(cpu_count(only_physical_cores=True)))


def num_threads(processes: int = 1) -> int:
    """Threads of each of `processes` that share the machine, at most OMP_NUM_THREADS if set.

    Launchers of parallel jobs set that variable for each job, so that a sweep does not oversubscribe the cores.
    """
    share = max(1, num_cores() // max(1, processes))
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return min(share, int(asked)) if asked.isdecimal() and int(asked) > 0 else share


@functools.cache
def keep_freed_memory() -> bool:
    """Keep freed memory for reuse instead of returning it to the system; returns whether that is supported.

    A training step allocates what the last one freed. By default glibc returns large blocks at once, and the system
    zeroes their pages again: half the time of a convolutional step. Memory usage stays at its peak.
    """
    if not sys.platform.startswith("linux") or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return False
    # No mmap for large blocks, since unmapping returns their pages, and no trimming of the heap.
    wanted = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: MAX_HEAP_TOP, M_TOP_PAD: HEAP_GROWTH}
    set_options = [libc.mallopt(option, value) == 1 for option, value in wanted.items()]
    return all(set_options)
