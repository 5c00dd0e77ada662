"""What this machine gives the process: cores, memory, the kind of processor.

The settings here change how fast the same numbers are computed, never what is computed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

# glibc's mallopt, malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
MAX_HEAP_TOP = 2**31 - 1  # bytes at the top of the heap, an int to glibc
HEAP_GROWTH = 64 * 2**20  # bytes by which the heap grows


def num_cores() -> int:
    """Physical cores that this process may use, by its affinity and its container's limits, at least 1."""
    from joblib import cpu_count

    return max(1, int(cpu_count(only_physical_cores=True)))


def num_threads(processes: int = 1) -> int:
    """Threads for one of so many processes that share the machine; OMP_NUM_THREADS, where set, is the most.

    Launchers of parallel jobs set it for each of theirs, so that a sweep does not fight itself.
    """
    share = max(1, num_cores() // max(1, processes))
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return min(share, int(asked)) if asked.isdecimal() and int(asked) > 0 else share


@functools.cache
def keep_freed_memory() -> bool:
    """Keep what tensors leave for the next ones instead of giving it back to the system; whether that was possible.

    A training step allocates what the last one freed. By default glibc returns large blocks at once, and the system
    clears every page of them anew: half of the time of a convolutional step. Kept, memory stays at its peak.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another libc
        return False
    # No block by mmap, whose pages go back with it; and a heap that is not cut at its top.
    wanted = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: MAX_HEAP_TOP, M_TOP_PAD: HEAP_GROWTH}
    done = [mallopt(option, value) == 1 for option, value in wanted.items()]
    return all(done)


def disable_nvml_check() -> None:
    """Let torch remember that training is on the CPU: 0.3 ms of every optimiser step.

    Lightning has torch ask the driver's management library each time, which is not remembered where there is none.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


@functools.cache
def is_amd() -> bool:
    """Whether the processor is AMD's."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")[:4096]
    except OSError:
        return False
