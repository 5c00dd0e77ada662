"""Allow-list for the config of a run directory: it may build parts of vae_lab and torch, and call nothing else.

A run directory may come from an untrusted source. Building the model imports and calls each `_target_` and evaluates
each resolver, so both are checked against allow-lists beforehand; `trusted=true` skips the check. The user's own conf/
and command line are not restricted.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import Container, OmegaConf
from omegaconf.grammar_parser import parse

from vae_lab.utils.errors import UsageError

# Modules whose public members a target may name, and the base classes allowed there; an empty tuple allows any public
# class or function. From Lightning, only classes that take no function, write only logs and use no network.
ALLOWED_TARGETS: dict[str, tuple[str, ...]] = {
    "vae_lab.callbacks": ("lightning.pytorch.Callback",),
    "vae_lab.data.sets": (),
    "vae_lab.data.transforms": (),
    "vae_lab.likelihoods": (),
    "vae_lab.models": (),
    "vae_lab.networks": (),
    "vae_lab.objectives": (),
    "vae_lab.posteriors": (),
    "vae_lab.priors": (),
    "vae_lab.second_stage": tuple(
        f"vae_lab.second_stage.{name}" for name in ("DirectFit", "GradientFit", "SecondStage", "StandardizedPrior")
    ),
    "vae_lab.training.optimizer": (),
    "vae_lab.training.trainer": (),
    "torch.distributions": ("torch.distributions.Distribution",),
    "torch.nn": ("torch.nn.Module",),
    "torch.nn.init": (),
    "torch.optim": ("torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler"),
    "lightning.pytorch.callbacks": tuple(
        f"lightning.pytorch.callbacks.{name}"
        for name in ("DeviceStatsMonitor", "EarlyStopping", "LearningRateMonitor", "ModelSummary", "Timer")
    ),
    "lightning.pytorch.loggers": ("lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.loggers.TensorBoardLogger"),
}
LOGGERS = "lightning.pytorch.loggers"
PUBLIC_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")

# Read-only resolvers. `run_dir` creates directories, `oc.decode` and `oc.create` parse strings as configs, and custom
# resolvers may run any code.
READ_ONLY_RESOLVERS = frozenset(
    {"oc.deprecated", "oc.dict.keys", "oc.dict.values", "oc.env", "oc.select", "hydra", "now", "python_version"}
)
REFERENCE = re.compile(r"\$\{[A-Za-z]\w*(\.\w+|\[\w+\])*\}")  # to an absolute key


def checked_run_config(config: Container, source: Path) -> Container:
    """The config of a run directory, untyped, checked to be buildable without running arbitrary code.

    References to keys are kept. Every other interpolation is resolved once, here, so that the checked values are the
    ones that are built. UsageError: from `require_allowed_targets`, or for a resolver that is not read-only.
    """
    raw = OmegaConf.to_container(config)
    for key, text in _texts(raw, ""):
        _require_read_only(text, key, source)
    resolved = _resolve_computed(raw, OmegaConf.to_container(config, resolve=True), "", source)
    require_allowed_targets(resolved, source)
    result: Container = OmegaConf.create(resolved)
    return result


def require_allowed_targets(content: Any, source: Path) -> None:
    """Raise UsageError at the first `_target_` of a resolved config that is not allowed.

    All names are checked against the allowed modules before anything is imported, because an import runs code.
    """
    nodes = list(_target_nodes(content, ""))
    for allows in (_is_name_of_part, _is_part):
        for key, node in nodes:
            target, where = node["_target_"], f"{key}._target_" if key else "_target_"
            if not allows(target, where):
                found = f"{source} names {target}, which the config of a run directory may not build"
                raise _refusal(where, found)
    for key, node in nodes:
        if node["_target_"].startswith(LOGGERS):
            _require_inside(node, key, source)


def _target_nodes(node: Any, key: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    from vae_lab.config.validation import tree

    return ((name, child) for name, child in tree(node, key) if isinstance(child, dict) and "_target_" in child)


def _require_inside(node: dict[Any, Any], key: str, source: Path) -> None:
    """Refuse path characters in logger arguments: loggers join them to the run directory, and they could lead out."""
    for name, text in _texts({**node, "_target_": None}, key):
        if re.search(r"[/\\:~$]|\.\.", text):
            raise _refusal(name, f"{source} lets a logger write outside the run directory: '{text}'")


def _is_name_of_part(target: Any, where: str) -> bool:
    return isinstance(target, str) and PUBLIC_NAME.fullmatch(target) is not None and _allowed_prefix(target) is not None


def _is_part(target: str, where: str) -> bool:
    """Whether the object is defined in the allowed module that its name starts with, and has an allowed base class."""
    from vae_lab.config.validation import import_target

    found = import_target(target, where)
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not found.__qualname__.isidentifier():
        return False  # e.g. a method
    prefix = _allowed_prefix(target)
    if prefix is None or prefix != _allowed_prefix(f"{found.__module__}.{found.__qualname__}"):
        return False  # imported there from another module
    kinds = tuple(import_target(kind, where) for kind in ALLOWED_TARGETS[prefix])
    return not kinds or (inspect.isclass(found) and issubclass(found, kinds))


def _allowed_prefix(path: str) -> str | None:
    """The longest allowed module that contains a dotted path."""
    return max((prefix for prefix in ALLOWED_TARGETS if path.startswith(f"{prefix}.")), key=len, default=None)


def _require_read_only(text: str, key: str, source: Path) -> None:
    for name in _resolvers(text):
        if name not in READ_ONLY_RESOLVERS:
            raise _refusal(key, f"{source} calls the resolver '{name}', which may have side effects")


def _resolvers(text: str) -> Iterator[str]:
    """The names of the resolvers that a string calls, unevaluated."""
    pending: list[Any] = [parse(text)] if "${" in text else []
    for node in pending:
        if type(node).__name__ == "InterpolationResolverContext":
            yield node.resolverName().getText().strip()
        pending += getattr(node, "children", None) or ()


def _resolve_computed(raw: Any, resolved: Any, key: str, source: Path) -> Any:
    """`raw` with every value resolved but plain references to keys; a `_target_` is always resolved."""
    if isinstance(raw, dict):
        return {name: _resolve_computed(child, resolved[name], f"{key}.{name}", source) for name, child in raw.items()}
    if isinstance(raw, list):
        pairs = zip(raw, resolved, strict=True)
        return [_resolve_computed(*pair, f"{key}[{index}]", source) for index, pair in enumerate(pairs)]
    refers = isinstance(raw, str) and REFERENCE.fullmatch(raw) is not None
    if refers and not key.endswith("._target_"):
        return raw
    for _, value in _leaves(resolved, key):
        # OmegaConf would resolve such a value (a string, or a path that it converts to one) again, with any resolver.
        if "${" in str(value):
            raise _refusal(key.lstrip("."), f"{source} computes the interpolation '{value}' from other values")
    return resolved


def _texts(node: Any, key: str) -> Iterator[tuple[str, str]]:
    return ((name, value) for name, value in _leaves(node, key) if isinstance(value, str))


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Each leaf of nested mappings and lists, with its full key."""
    from vae_lab.config.validation import tree

    return ((name, child) for name, child in tree(node, key) if not isinstance(child, (dict, list)))


def _refusal(key: str, found: str) -> UsageError:
    return UsageError(
        f"{key}: {found}\n"
        "This could run arbitrary code. Check the file; if the run is your own or from a source you trust, add\n"
        "trusted=true (in Python: vae_lab.load(run, trusted=True))"
    )
