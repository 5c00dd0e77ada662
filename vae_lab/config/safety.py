"""What the config of a run directory may do: build parts of vae_lab and of torch, and call nothing else.

A run directory may come from anybody. What its config names is imported and called when the model is built, and what
it refers to is looked up, so both are checked against short lists before either happens; `trusted=true` widens them.
The user's own conf/ and command line are free.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import Container, OmegaConf
from omegaconf.grammar_parser import parse

from vae_lab.utils.errors import UsageError

# Below which modules a target may lie, and of which classes it must then be one: of none, any public class or
# function. Of Lightning only what takes no function, writes nothing but logs and sends nothing anywhere.
ALLOWED: dict[str, tuple[str, ...]] = {
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
        f"vae_lab.second_stage.{name}" for name in ("DirectFit", "GradientFit", "SecondStage", "Standardized")
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

# They read. `run_dir` makes folders, `oc.decode` and `oc.create` take a text for a config, the user's own do anything.
RESOLVERS = frozenset(
    {"oc.deprecated", "oc.dict.keys", "oc.dict.values", "oc.env", "oc.select", "hydra", "now", "python_version"}
)
REFERENCE = re.compile(r"\$\{[A-Za-z]\w*(\.\w+|\[\w+\])*\}")  # to a key by its full name


def checked_run_config(config: Container, source: Path) -> Container:
    """The config of a run directory that can be built without running code of its choice, untyped.

    References to keys stay as they are. What is put together or read from elsewhere is resolved once, here: what was
    checked is what will be built. UsageError: what `require_trusted` raises, or a resolver that may do more than read.
    """
    raw = OmegaConf.to_container(config)
    for key, text in _texts(raw, ""):
        _require_harmless(text, key, source)
    settled = _resolve_computed(raw, OmegaConf.to_container(config, resolve=True), "", source)
    require_trusted(settled, source)
    result: Container = OmegaConf.create(settled)
    return result


def require_trusted(content: Any, source: Path) -> None:
    """UsageError at the first `_target_` of a resolved config that is none of the allowed parts.

    Nothing is imported before all names are seen to lie below an allowed module, for an import runs code.
    """
    nodes = list(_target_nodes(content, ""))
    for allows in (_is_name_of_part, _is_part):
        for key, node in nodes:
            target, where = node["_target_"], f"{key}._target_" if key else "_target_"
            if not allows(target, where):
                found = f"{source} names {target}, none of the parts that a run's config may build"
                raise _refusal(where, found)
    for key, node in nodes:
        if node["_target_"].startswith(LOGGERS):
            _require_inside(node, key, source)


def _target_nodes(node: Any, key: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    from vae_lab.config.validation import children

    if isinstance(node, dict) and "_target_" in node:
        yield key, node
    for name, child in children(node, key):
        yield from _target_nodes(child, name)


def _require_inside(node: dict[Any, Any], key: str, source: Path) -> None:
    """Loggers join what they are given to the run directory; these signs lead out of it."""
    for name, text in _texts({**node, "_target_": None}, key):
        if re.search(r"[/\\:~$]|\.\.", text):
            raise _refusal(name, f"{source} lets a logger write to '{text}'")


def _is_name_of_part(target: Any, where: str) -> bool:
    return isinstance(target, str) and PUBLIC_NAME.fullmatch(target) is not None and _allowed_prefix(target) is not None


def _is_part(target: str, where: str) -> bool:
    """Whether what a name below an allowed module means was defined below the same one, and is of its kind."""
    from vae_lab.config.validation import locate

    found = locate(target, where)
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not found.__qualname__.isidentifier():
        return False  # the method of a class, for one
    prefix = _allowed_prefix(target)
    if prefix is None or prefix != _allowed_prefix(f"{found.__module__}.{found.__qualname__}"):
        return False  # what another module imported
    kinds = tuple(locate(kind, where) for kind in ALLOWED[prefix])
    return not kinds or (inspect.isclass(found) and issubclass(found, kinds))


def _allowed_prefix(path: str) -> str | None:
    """The longest allowed module that a dotted path lies below."""
    return max((prefix for prefix in ALLOWED if path.startswith(f"{prefix}.")), key=len, default=None)


def _require_harmless(text: str, key: str, source: Path) -> None:
    for name in _resolvers(text):
        if name not in RESOLVERS:
            raise _refusal(key, f"{source} calls the resolver '{name}', which may do more than read")


def _resolvers(text: str) -> Iterator[str]:
    """The names of the resolvers that a text calls, as they are written there."""
    pending: list[Any] = [parse(text)] if "${" in text else []
    for node in pending:
        if type(node).__name__ == "InterpolationResolverContext":
            yield node.resolverName().getText().strip()
        pending += getattr(node, "children", None) or ()


def _resolve_computed(raw: Any, resolved: Any, key: str, source: Path) -> Any:
    """`raw` with the value of everything in it that is not a reference to a key; a `_target_` is never one."""
    if isinstance(raw, dict):
        return {name: _resolve_computed(child, resolved[name], f"{key}.{name}", source) for name, child in raw.items()}
    if isinstance(raw, list):
        pairs = zip(raw, resolved, strict=True)
        return [_resolve_computed(*pair, f"{key}[{index}]", source) for index, pair in enumerate(pairs)]
    refers = isinstance(raw, str) and REFERENCE.fullmatch(raw) is not None
    if refers and not key.endswith("._target_"):
        return raw
    for _, value in _leaves(resolved, key):
        # OmegaConf would resolve these a second time, by other resolvers: a text, or what it makes a text of (a path).
        if "${" in str(value):
            raise _refusal(key.lstrip("."), f"{source} makes the reference '{value}' out of something else")
    return resolved


def _texts(node: Any, key: str) -> Iterator[tuple[str, str]]:
    return ((name, value) for name, value in _leaves(node, key) if isinstance(value, str))


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Each value in a mapping or a list, under its full key."""
    from vae_lab.config.validation import children

    if not isinstance(node, (dict, list)):
        yield key, node
    for name, child in children(node, key):
        yield from _leaves(child, name)


def _refusal(key: str, found: str) -> UsageError:
    return UsageError(
        f"{key}: {found}\n"
        "That may run or write anything. Look at the file; if the run is yours, or you trust whose it is, add\n"
        "trusted=true (in Python: vae_lab.load(run, trusted=True))"
    )
