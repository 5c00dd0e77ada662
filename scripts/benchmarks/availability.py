"""What can be measured here, told by a process that imports what this one does not."""

from __future__ import annotations

import importlib.util

from scripts.benchmarks.workers import Turn


def importance_bound(turn: Turn) -> None:
    """Whether vae_lab has the importance bound."""
    found = importlib.util.find_spec("vae_lab.metrics.importance") is not None
    if found:
        from vae_lab.metrics import importance as likelihood

        found = hasattr(likelihood, "importance_bound")
    turn(found)


def torch_here(turn: Turn) -> None:
    """Threads that torch takes, and the name of the CUDA device."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    turn({"threads": torch.get_num_threads(), "device": device})
