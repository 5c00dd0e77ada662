"""Validation of the config: each `_target_` node is checked against the signature before anything is built.

Hydra does not type the groups below the root: a typo in an experiment file, a `+key=` or a string where a number is
expected would surface minutes later as a TypeError. Here they are errors that name the key.
"""

import dataclasses
import difflib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Container, Iterable, Iterator
from importlib import import_module
from typing import Any, Literal, Union, Unpack

import typeguard
from omegaconf import DictConfig, OmegaConf

from vae_lab.utils.errors import UsageError

HYDRA_KEYS = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})
OF_LIGHTNING = {"gradient_clip_val": "optimizer.clip_norm", "accumulate_grad_batches": "optimizer.accumulate"}
WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string", types.NoneType: "null"}


def check_targets(config: DictConfig, groups: Container[str] | None = None) -> None:
    """Raise UsageError at the first key, type or `_target_` that would fail when the config is built.

    A missing argument is an error unless the node is `_partial_`. Types follow the annotations; an integer counts as a
    float and a list as any sequence. Imports every target. groups: the only ones to check.
    """
    for prefix, node in (("", config), ("trainer.", config.get("trainer"))):  # `+key=` adds keys even to typed nodes
        schema = OmegaConf.get_type(node)
        if dataclasses.is_dataclass(schema):
            fields = [field.name for field in dataclasses.fields(schema)]
            for name in map(str, node):
                if name not in fields:
                    raise UsageError(f"{prefix}{name}: there is no such key{names_to_choose(name, fields, prefix)}")
    for where, node in tree(OmegaConf.to_container(config, resolve=True, throw_on_missing=True)):
        if groups is not None and where.partition(".")[0] not in groups:
            continue
        if isinstance(node, dict) and "_target_" in node:
            _check_node(node, where)
        elif isinstance(node, dict) and re.fullmatch(r"(callbacks|logger)\.\w+", where):
            raise UsageError(f"{where}: options of a part that this config does not have\nremove them: ~{where}")


def did_you_mean(word: str, names: Iterable[str], prefix: str = "") -> str:
    """A line of an error message with the name most similar to a misspelt word; empty if none is similar."""
    if word in OF_LIGHTNING:
        return f"\nset {OF_LIGHTNING[word]}"
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"\ndid you mean {prefix}{by_lower[near[0]]}?" if near else ""


def names_to_choose(word: str, names: Iterable[str], prefix: str = "") -> str:
    """Lines of an error message with the name most similar to a misspelt word, and all names."""
    expected = ", ".join(names)
    return did_you_mean(word, names, prefix) + (f"\nexpected one of: {expected}" if expected else "")


def tree(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """A value and all values in its nested mappings and lists, each with its full key."""
    yield where, node
    if isinstance(node, dict):
        for name, child in node.items():
            yield from tree(child, f"{where}.{name}" if where else str(name))
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from tree(child, f"{where}[{index}]")


def import_target(path: str, key: str) -> Any:
    """Import the object at a dotted path. UsageError: it cannot be imported or is not callable."""
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        module, _, name = path.rpartition(".")
        reason, hint = str(error), ""
        try:
            hint = did_you_mean(name, dir(import_module(module)), f"{module}.")
        except (ImportError, ValueError, TypeError) as unimportable:  # says more than the missing attribute
            reason = str(unimportable)
            if getattr(unimportable, "name", None) == path.partition(".")[0]:
                hint = "\na package of your own: start the command in the folder that holds it, or install it"
        raise UsageError(f"{key}: '{path}' does not exist, {reason}{hint}") from error
    if not callable(found):
        raise UsageError(f"{key}: '{path}' is a {type(found).__name__}, expected a class or a function")
    return found


def _check_node(node: dict[str, Any], where: str) -> None:
    path = str(node["_target_"])
    hints, required, accepts_any = _arguments(import_target(path, f"{where}._target_"))
    given = {name: value for name, value in node.items() if name not in HYDRA_KEYS}
    for name, value in given.items():
        if name in hints:
            _check_type(value, hints[name], f"{where}.{name}")
        elif not accepts_any:
            names = names_to_choose(name, hints, f"{where}.")
            raise UsageError(f"{where}.{name}: {path} has no argument '{name}'{names}")
    positional = list(hints)[: len(node.get("_args_") or ())]
    missing = [name for name in required if name not in (*given, *positional)]
    if missing and not node.get("_partial_"):
        advice = f"set {where}.{missing[0]}=..., or _partial_: true in its file if the model is to give it"
        raise UsageError(f"{where}: {path} needs {', '.join(map(repr, missing))}\n{advice}")


def _arguments(target: Any) -> tuple[dict[str, Any], list[str], bool]:
    """The types of the arguments by name, the names of those without a default, and whether it takes any name."""
    try:
        parameters = inspect.signature(target, eval_str=True).parameters.values()
    except NameError:  # an annotation imported under TYPE_CHECKING: a string counts as Any below
        parameters = inspect.signature(target).parameters.values()
    except ValueError:  # a builtin without a signature
        return {}, [], True
    hints, required, accepts_any = {}, [], False
    for p in parameters:
        hint = Any if p.annotation is p.empty or isinstance(p.annotation, str) else p.annotation
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            hints[p.name] = hint | None if p.default is None and hint is not Any else hint
            required += [p.name] if p.default is p.empty else []
        elif p.kind is p.VAR_KEYWORD and typing.get_origin(hint) is Unpack:
            (options,) = typing.get_args(hint)
            hints |= typing.get_type_hints(options)
            required += options.__required_keys__
        elif p.kind is p.VAR_KEYWORD:
            accepts_any = True
    return hints, required, accepts_any


def _check_type(value: Any, hint: Any, key: str) -> None:
    if any(isinstance(part, dict) and "_target_" in part for _, part in tree(value)):
        return  # built by its own target
    members = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    if isinstance(value, bool) and {int, float} & set(members):  # a bool is an int in Python, but no latent_dim
        fits = bool in members
    else:
        fits = _fits(value, hint) or _fits(_as_tuple(value), hint)
    if fits:
        return
    expected: list[str] = []
    choices: list[str] = []
    for member in members:
        if typing.get_origin(member) is Literal:
            choices += map(str, typing.get_args(member))
            expected.append(f"one of {', '.join(map(repr, typing.get_args(member)))}")
        else:
            plain = re.sub(r"\b[A-Za-z_]\w*\.", "", inspect.formatannotation(member))
            expected.append(WORDS.get(member, plain))
    near = did_you_mean(str(value), choices, f"{key}=")
    raise UsageError(f"{key}: found {value!r} ({type(value).__name__}), expected {', or '.join(expected)}{near}")


def _fits(value: Any, hint: Any) -> bool:
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


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
