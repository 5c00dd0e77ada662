"""Provenance of a run: config hash, git commit, package versions."""

import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

# The hash of an experiment is independent of its paths, name, seed and length of training.
KEYS_NOT_HASHED = {
    "": ("name", "resume", "trusted", "seed", "sweep"),
    "data": ("root", "folder", "file", "files", "labels", "cache_dir"),
    "trainer": ("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time"),
}


def config_hash(config: DictConfig) -> str:
    """SHA-256 of the resolved config as canonical JSON, without seed, name, folders and lengths of training."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    for group, keys in KEYS_NOT_HASHED.items():
        node = (content.get(group) or {}) if group else content
        for key in keys:
            node.pop(key, None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def git_state() -> dict[str, str | bool] | None:
    """`commit` and `dirty` of the checkout that this package runs from; None outside one or without git.

    dirty: vae_lab/ or conf/ differs from the commit; other files, such as the README, do not count.
    """
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():  # an installed package may lie inside another project's repository
        return None
    command = ["git", "-C", str(checkout), "status", "--porcelain=v2", "--branch", "--", "vae_lab", "conf"]
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        status = subprocess.run(command, capture_output=True, text=True, env=quiet, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = status.stdout.splitlines()
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid")), "unknown")
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}


def versions() -> dict[str, str]:
    """The versions of python, torch, lightning and vae_lab."""
    installed = {name: metadata.version(name) for name in ("torch", "lightning")}
    ours = next(iter(metadata.distributions(name="vae_lab")), None)  # None: a checkout that is not installed
    return {"python": platform.python_version(), **installed, "vae_lab": ours.version if ours else "unknown"}
