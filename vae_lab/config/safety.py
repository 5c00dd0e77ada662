"""Allow-list for the config of a run directory: it may build parts of vae_lab and torch, and call nothing else.

A run directory may come from an untrusted source. Building the model imports and calls each `_target_` and evaluates
each interpolation, so both are checked beforehand; `trusted=true` skips the check. The user's own conf/ and command
line are not restricted.
"""

import inspect
import re
from pathlib import Path
from typing import Any

from omegaconf import Container, OmegaConf

from vae_lab.config.validation import import_target, tree
from vae_lab.utils.errors import UsageError

# Packages whose public classes and functions a target may name, and single names: of Lightning, classes that take no
# function, write only logs and use no network.
PACKAGES = frozenset(
    f"vae_lab.{name}"
    for name in (
        *("callbacks", "data.sets", "data.transforms", "likelihoods", "models", "networks", "objectives"),
        *("objectives.regularizers", "posteriors", "priors", "second_stage", "training.optimizer", "training.trainer"),
    )
) | {"torch.distributions", "torch.nn", "torch.nn.init", "torch.optim", "torch.optim.lr_scheduler"}
LIGHTNING = "lightning.pytorch"
LOGGERS = frozenset(f"{LIGHTNING}.loggers.{name}" for name in ("CSVLogger", "TensorBoardLogger"))
NAMES = LOGGERS | {
    f"{LIGHTNING}.callbacks.{name}"
    for name in ("DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor", "ModelSummary", "Timer")
}
# References to keys and resolvers that only read, without interpolations inside.
INTERPOLATION = re.compile(r"\$\{(?:\.*[A-Za-z]\w*(?:\.\w+|\[\w+\])*|(?:oc\.env|oc\.select|hydra|now):[^${}]*)\}")


def checked_run_config(config: Container, source: Path) -> Container:
    """The config of a run directory, checked to be buildable without running arbitrary code.

    UsageError: a `_target_` that is not a public member of an allowed package, an interpolation other than a reference
    or a resolver that only reads, or a logger that could write outside the run directory.
    """
    content = OmegaConf.to_container(config)
    _require_plain(content, source, INTERPOLATION)
    # A value computed from others may be an interpolation itself, which would be resolved in turn.
    _require_plain(OmegaConf.to_container(config, resolve=True), source)
    require_allowed_targets(content, source)
    return config


def _require_plain(content: Any, source: Path, allowed: re.Pattern[str] = re.compile("(?!)")) -> None:
    """Refuse an interpolation that is not allowed, also in a path or in bytes, which OmegaConf converts to strings."""
    for key, value in tree(content):
        if not isinstance(value, dict | list) and "${" in allowed.sub("", str(value)):
            raise _refusal(key, f"{source} has the interpolation '{value}', which may have side effects")


def require_allowed_targets(content: Any, source: Path) -> None:
    """Raise UsageError at the first `_target_` that is not allowed.

    All names are checked before anything is imported, because an import runs code.
    """
    nodes = [(key, node) for key, node in tree(content) if isinstance(node, dict) and "_target_" in node]
    for allows in (_is_allowed_name, _is_allowed_object):
        for key, node in nodes:
            target, where = node["_target_"], f"{key}._target_".lstrip(".")
            if not allows(target, where):
                raise _refusal(where, f"{source} names {target}, which the config of a run directory may not build")
    for key, node in nodes:
        # Loggers join their arguments to the run directory, and a path could lead out of it.
        for name, value in tree({**node, "_target_": ""} if node["_target_"] in LOGGERS else {}, key):
            if isinstance(value, str) and re.search(r"[/\\:~$]|\.\.", value):
                raise _refusal(name, f"{source} lets a logger write outside the run directory: '{value}'")


def _is_allowed_name(target: Any, where: str) -> bool:
    if not isinstance(target, str) or target in NAMES:
        return isinstance(target, str)
    package, _, name = target.rpartition(".")
    return package in PACKAGES and name.isidentifier() and not name.startswith("_")


def _is_allowed_object(target: str, where: str) -> bool:
    """Whether it is a class or a function, defined in the package that the name says, not imported there."""
    found = import_target(target, where)
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        return False
    return target in NAMES or f"{found.__module__}.".startswith(f"{target.rpartition('.')[0]}.")


def _refusal(key: str, found: str) -> UsageError:
    return UsageError(
        f"{key}: {found}\n"
        "This could run arbitrary code. Check the file; if the run is your own or from a source you trust, add\n"
        "trusted=true (in Python: vae_lab.load(run, trusted=True))"
    )
