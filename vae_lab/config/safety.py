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
# function and write only logs, here or on the server that the config names.
PACKAGES = {
    *("torch.distributions", "torch.nn", "torch.nn.init", "torch.optim", "torch.optim.lr_scheduler"),
    *("vae_lab.callbacks", "vae_lab.data.sets", "vae_lab.data.transforms", "vae_lab.likelihoods", "vae_lab.models"),
    *("vae_lab.networks", "vae_lab.objectives", "vae_lab.objectives.regularizers", "vae_lab.posteriors"),
    *("vae_lab.priors", "vae_lab.second_stage", "vae_lab.training.optimizer", "vae_lab.training.trainer"),
}
LOGGERS = {
    f"lightning.pytorch.loggers.{name}" for name in ("CSVLogger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger")
}
TRACKING_URI = re.compile(r"https?://[\w.:-]+/?|sqlite:///\w[\w.-]*")  # of MLFlowLogger: a server, a file here
NAMES = {
    *LOGGERS,
    *(f"lightning.pytorch.callbacks.{name}" for name in ("DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor")),
    *(f"lightning.pytorch.callbacks.{name}" for name in ("ModelSummary", "Timer")),
}
# References to keys and resolvers that only read, without interpolations inside.
INTERPOLATION = re.compile(r"\$\{(?:\.*[A-Za-z]\w*(?:\.\w+|\[\w+\])*|(?:oc\.env|oc\.select|hydra|now):[^${}]*)\}")


def require_harmless(config: Container, source: Path) -> None:
    """Raise UsageError if building the config of a run directory could run arbitrary code.

    That is a `_target_` that is not a public member of an allowed package, or an interpolation other than a reference
    or a resolver that only reads; a logger that could write outside the run directory is refused too. All names are
    checked before anything is imported, because an import runs code.
    """
    content = OmegaConf.to_container(config)
    for key, value in tree(content):
        _require_plain(INTERPOLATION.sub("", str(value)), value, key, source)
    # A value computed from others may be an interpolation itself, which would be resolved in turn.
    for key, value in tree(OmegaConf.to_container(config, resolve=True)):
        _require_plain(str(value), value, key, source)
    targets = [(f"{key}._target_".lstrip("."), node["_target_"]) for key, node in tree(content)
               if isinstance(node, dict) and "_target_" in node]  # fmt: skip
    for allows in (_is_allowed_name, _is_allowed_object):
        for key, target in targets:
            if not allows(target, key):
                raise _refusal(key, f"{source} names {target}, which the config of a run directory may not build")
    for where, node in tree(content):
        if isinstance(node, dict) and node.get("_target_") in LOGGERS:
            # Loggers join their arguments to the run directory, and a path could lead out of it.
            for key, value in tree({**node, "_target_": ""}, where):
                if key.endswith(".settings"):  # of W&B's own programs
                    raise _refusal(key, f"{source} has settings of a logger")
                is_uri = key.endswith(".tracking_uri") and TRACKING_URI.fullmatch(str(value))
                if isinstance(value, str) and not is_uri and re.search(r"[/\\:~$]|\.\.", value):
                    raise _refusal(key, f"{source} lets a logger write outside the run directory: '{value}'")


def _require_plain(text: str, value: Any, key: str, source: Path) -> None:
    """Refuse an interpolation, also in a path or in bytes, which OmegaConf converts to strings."""
    if "${" in text and not isinstance(value, dict | list):
        raise _refusal(key, f"{source} has the interpolation '{value}', which may have side effects")


def _is_allowed_name(target: Any, key: str) -> bool:
    package, _, name = str(target).rpartition(".")
    is_member = package in PACKAGES and name.isidentifier() and not name.startswith("_")
    return isinstance(target, str) and (target in NAMES or is_member)


def _is_allowed_object(target: str, key: str) -> bool:
    """Whether it is a class or a function, defined in the package that the name says, not imported there."""
    found = import_target(target, key)
    is_code = inspect.isclass(found) or inspect.isfunction(found)
    return is_code and (target in NAMES or f"{found.__module__}.".startswith(f"{target.rpartition('.')[0]}."))


def _refusal(key: str, found: str) -> UsageError:
    return UsageError(
        f"{key}: {found}\n"
        "This could run arbitrary code. Check the file; if the run is your own or from a source you trust, add\n"
        "trusted=true (in Python: vae_lab.load(run, trusted=True))"
    )
