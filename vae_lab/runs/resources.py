"""The share of this machine that a job of a sweep gets, for the launchers of conf/hydra/launcher."""

from __future__ import annotations

import os
from pathlib import Path

from vae_lab.utils import cpu


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Asks no driver: torch is not imported."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    return [str(index) for index, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def jobs_at_once() -> int:
    """One job for each GPU; without a GPU, one for each core."""
    return len(visible_gpus()) or cpu.num_cores()


def threads_per_job() -> int:
    return cpu.num_threads(jobs_at_once())


def gpus_per_job() -> int:
    return min(1, len(visible_gpus()))


def gpu_of_job(number: int) -> str:
    """CUDA_VISIBLE_DEVICES of a job: the GPUs in turn, or empty."""
    gpus = visible_gpus()
    return gpus[int(number) % len(gpus)] if gpus else ""
