"""vae_lab: variational autoencoder experiments. `vae_lab.fit(...)` trains a model, `vae_lab.load(run)` loads one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import vae_lab.config.schema  # noqa: F401 - registers the schemas, for Hydra's compose API

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig

    from vae_lab.inference import Lab

    __version__: str


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


def compose(*overrides: str) -> DictConfig:
    """The config of vae_lab.train for overrides as on the command line: to look at, to change, and for `fit`."""
    from vae_lab.runs.cli import compose_config

    return compose_config("train", overrides)


def fit(*request: str | DictConfig) -> Lab:
    """Train an experiment and return the trained model.

        lab = vae_lab.fit("experiment=vae", "data=mnist", "trainer.max_epochs=10")
        lab = vae_lab.fit(config)

    request: overrides as on the command line, or a config that `compose` or Hydra's compose API made. The run is a
    directory below outputs/ as of `python -m vae_lab.train`. UsageError: a wrong request.
    """
    from vae_lab.train import fit as fit_run

    return fit_run(*request)
