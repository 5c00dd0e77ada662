"""vae_lab: variational autoencoder experiments. `vae_lab.fit(...)` trains a model, `vae_lab.load(run)` loads one."""

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


def fit(*overrides: str) -> Lab:
    """Train an experiment, with overrides as on the command line, and return the trained model.

        lab = vae_lab.fit("experiment=vae", "data=mnist", "trainer.max_epochs=10")

    The run is a directory below outputs/ as of `python -m vae_lab.train`. UsageError: a wrong request.
    """
    from vae_lab.train import fit as fit_run

    return fit_run(*overrides)
