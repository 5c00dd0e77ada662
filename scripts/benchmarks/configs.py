"""A config as the command composes it."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig


def composed(overrides: Sequence[str]) -> DictConfig:
    """The config of `python -m vae_lab.train OVERRIDES`."""
    from hydra import compose, initialize_config_dir

    from vae_lab.config.schema import conf_dir, register
    from vae_lab.runs.run_dir import register_resolvers

    register()
    register_resolvers()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("train", list(overrides))
