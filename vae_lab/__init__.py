"""vae_lab: variational autoencoder experiments. `vae_lab.load(run)` returns a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from vae_lab.inference import Lab


def __getattr__(name: str) -> str:
    """Look up `__version__` on access, so that commands start faster."""
    if name != "__version__":
        raise AttributeError(f"module 'vae_lab' has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vae_lab")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0+unknown"


def load(
    run: str | Path,
    checkpoint: str = "best",
    trusted: bool = False,
    prior: Literal["fitted", "trained"] | None = None,
) -> Lab:
    """Load the trained model of a run directory; see `vae_lab.inference.load`."""
    from vae_lab.inference import load as load_run

    return load_run(run, checkpoint, trusted, prior)
