"""vae_lab: variational autoencoder experiments. `vae_lab.load(run)` gives a trained model back."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from vae_lab.lab import Lab

try:
    __version__ = version("vae_lab")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def load(run: str | Path, checkpoint: str = "best") -> Lab:
    """The trained model of a run directory; see `vae_lab.lab.load`."""
    from vae_lab.lab import load as load_run

    return load_run(run, checkpoint)
