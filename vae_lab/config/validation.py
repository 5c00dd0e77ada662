"""Validation of the config: each `_target_` node is checked against the signature before anything is built.

Hydra does not type the groups below the root: a typo in an experiment file, a `+key=` or a string where a number is
expected would surface minutes later as a TypeError. Here they are errors that name the key.
"""

import dataclasses
import difflib
import inspect
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any, Literal, NamedTuple, NoReturn, Union, Unpack

import typeguard
from omegaconf import DictConfig, OmegaConf

from vae_lab.utils.errors import UsageError

HYDRA_KEYS = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})
UNRESOLVABLE = (NameError, AttributeError, TypeError, SyntaxError)  # e.g. an import under TYPE_CHECKING


class Arguments(NamedTuple):
    """Parameters of a target."""

    hints: dict[str, Any]  # name to type; Any if not annotated
    required: tuple[str, ...]
    nullable: frozenset[str]  # default None, whatever the annotation
    positional: tuple[str, ...]  # in order, as filled by `_args_`
    open: bool  # accepts any keyword (**kwargs)


def check_targets(config: DictConfig) -> None:
    """Raise UsageError at the first key, type or `_target_` that would fail when the config is built.

    A missing argument is an error unless the node is `_partial_`. Types follow the annotations; an integer counts as a
    float and a list as any sequence. Imports every target.
    """
    _check_schema(config, "")
    _check_tree(OmegaConf.to_container(config, resolve=True, throw_on_missing=True), "")


def nearest_name(word: str, names: Iterable[str]) -> str | None:
    """The name with the fewest edits from a misspelt word, else the most similar one, else None."""
    names = sorted(names)
    edits = {name: _edits(word.lower(), name.lower()) for name in names}
    best = min(names, key=lambda name: (edits[name], -_similarity(word, name)), default=None)
    if best is not None and edits[best] <= max(1, len(word) // 3):
        return best
    return next(iter(difflib.get_close_matches(word, names, n=1)), None)


def _check_schema(node: Any, where: str) -> None:
    """Check the keys of typed nodes against the fields of their dataclass, since `+key=` adds keys even there."""
    if not isinstance(node, DictConfig) or not dataclasses.is_dataclass(schema := OmegaConf.get_type(node)):
        return
    names = [field.name for field in dataclasses.fields(schema)]
    for name in map(str, node):
        key = f"{where}.{name}" if where else name
        if name not in names:
            near = nearest_name(name, names)
            hint = f"\ndid you mean {key.removesuffix(name)}{near}?" if near else ""
            raise UsageError(f"{key}: there is no such key{hint}\nexpected one of: {', '.join(names)}")
        _check_schema(node._get_node(name), key)


def _check_tree(node: Any, where: str) -> None:
    if isinstance(node, dict) and "_target_" in node:
        _check_node(node, where)
    for key, child in children(node, where):
        _check_tree(child, key)


def children(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The items of a mapping or a list, each with its full key; empty for any other value."""
    if isinstance(node, dict):
        yield from ((f"{where}.{name}" if where else str(name), child) for name, child in node.items())
    elif isinstance(node, list):
        yield from ((f"{where}[{index}]", child) for index, child in enumerate(node))


def _check_node(node: dict[str, Any], where: str) -> None:
    target = str(node["_target_"])
    arguments = _arguments(import_target(target, f"{where}._target_"))
    given = {name: value for name, value in node.items() if name not in HYDRA_KEYS}
    for name, value in given.items():
        if name in arguments.hints:
            _check_type(value, arguments, name, f"{where}.{name}")
        elif not arguments.open:
            _refuse_key(name, arguments, target, where)
    filled = {*given, *arguments.positional[: len(node.get("_args_") or ())]}
    missing = [name for name in arguments.required if name not in filled]
    if missing and not node.get("_partial_"):
        raise UsageError(f"{where}: {target} needs {_quoted(missing)}\nset {where}.{missing[0]}=...")


def _refuse_key(name: str, arguments: Arguments, target: str, where: str) -> NoReturn:
    names = arguments.hints
    near = nearest_name(name, names)
    hint = f"\ndid you mean {where}.{near}?" if near else ""
    takes = ", ".join(names) or "nothing"
    raise UsageError(f"{where}.{name}: {target} has no argument '{name}'{hint}\nit takes: {takes}")


def _check_type(value: Any, arguments: Arguments, name: str, key: str) -> None:
    if _holds_target(value) or (value is None and name in arguments.nullable):
        return
    hint = arguments.hints[name]
    if _fits(value, hint) or _fits(_as_tuple(value), hint):
        return
    choices = [str(choice) for choice in _choices(hint)]
    near = nearest_name(value, choices) if isinstance(value, str) else None
    expected = _expected(hint, choices)
    suggestion = f"\ndid you mean {key}={near}?" if near else ""
    raise UsageError(f"{key}: found {value!r} ({type(value).__name__}), expected {expected}{suggestion}")


def _expected(hint: Any, choices: list[str]) -> str:
    """The values that a hint allows, in words."""
    if not choices:
        return _type_name(hint)
    others = [member for member in _members(hint) if typing.get_origin(member) is not Literal]
    words = {bool: "true or false", int: "an integer", float: "a number", str: "a string", type(None): "null"}
    allowed = [words.get(member, _type_name(member)) for member in others]
    return ", or ".join([f"one of {_quoted(choices)}" if len(choices) > 1 else _quoted(choices), *allowed])


def _fits(value: Any, hint: Any) -> bool:
    # A bool is an int in Python, but not a valid value of `latent_dim: int`.
    if isinstance(value, bool) and any(member in (int, float) for member in _members(hint)):
        return bool in _members(hint)
    try:
        typeguard.check_type(
            value,
            hint,
            forward_ref_policy=typeguard.ForwardRefPolicy.IGNORE,
            collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
        )
    except typeguard.TypeCheckError:
        return False
    return True


def _arguments(target: Any) -> Arguments:
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except ValueError:  # a builtin without a signature
        return Arguments({}, (), frozenset(), (), open=True)
    scope = _scope(target)
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    hints = {p.name: _resolve(p.annotation, scope) for p in by_name}
    required = [p.name for p in by_name if p.default is p.empty]
    options = [_resolve(p.annotation, scope) for p in parameters if p.kind is p.VAR_KEYWORD]
    unpacked = [typing.get_args(option)[0] for option in options if typing.get_origin(option) is Unpack]
    for typed_dict in unpacked:
        namespace = vars(sys.modules[typed_dict.__module__])
        hints |= {name: _resolve(hint, namespace) for name, hint in typed_dict.__annotations__.items()}
        required += typed_dict.__required_keys__
    return Arguments(
        hints,
        tuple(required),
        frozenset(p.name for p in by_name if p.default is None),
        tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)),
        open=len(options) > len(unpacked),
    )


def _scope(target: Any) -> dict[str, Any]:
    """The global namespace of a target's annotations."""
    function = inspect.unwrap(getattr(target, "__init__") if inspect.isclass(target) else target)  # noqa: B009
    function = getattr(function, "__func__", function)  # a class method
    return getattr(function, "__globals__", {})


def _resolve(annotation: Any, scope: dict[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, scope)["it"]
    except UNRESOLVABLE:
        return Any


def import_target(path: str, key: str) -> Any:
    """Import the object at a dotted path. UsageError: it does not exist or is not callable."""
    first, *rest = path.split(".")
    found, reached = _import(first), first
    if found is None:
        raise UsageError(f"{key}: no module named '{first}', in {path}")
    for part in rest:
        inner = getattr(found, part, None)
        if inner is None and inspect.ismodule(found):
            inner = _import(f"{reached}.{part}")
        if inner is None:
            near = nearest_name(part, _names_in(found))
            suggestion = f"\ndid you mean {reached}.{near}?" if near else ""
            raise UsageError(f"{key}: '{path}' does not exist, no '{part}' in {reached}{suggestion}")
        found, reached = inner, f"{reached}.{part}"
    if not callable(found):
        raise UsageError(f"{key}: '{path}' is a {type(found).__name__}, expected a class or a function")
    return found


def _import(path: str) -> Any:
    """The module, or None if there is none; an import error inside the module is raised."""
    try:
        return import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        return None


def _names_in(found: Any) -> list[str]:
    modules = [module.name for module in pkgutil.iter_modules(getattr(found, "__path__", []))]
    return [name for name in {*dir(found), *modules} if not name.startswith("_")]


def _holds_target(value: Any) -> bool:
    return (isinstance(value, dict) and "_target_" in value) or any(
        _holds_target(child) for _, child in children(value, "")
    )


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


def _members(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _choices(hint: Any) -> list[Any]:
    literals = (member for member in _members(hint) if typing.get_origin(member) is Literal)
    return [choice for literal in literals for choice in typing.get_args(literal)]


def _type_name(hint: Any) -> str:
    return re.sub(r"\b[A-Za-z_]\w*\.", "", inspect.formatannotation(hint))


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _similarity(word: str, name: str) -> float:
    return difflib.SequenceMatcher(None, word, name).ratio()


def _edits(a: str, b: str) -> int:
    """Edit distance: insertions, deletions, replacements and swaps of adjacent characters."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, left in enumerate(a):
        older, before, row = before, row, [i + 1]
        for j, right in enumerate(b):
            cost = min(before[j] + (left != right), before[j + 1] + 1, row[j] + 1)
            swapped = i > 0 and j > 0 and left == b[j - 1] and a[i - 1] == right
            row.append(min(cost, older[j - 1] + 1) if swapped else cost)
    return row[-1]
