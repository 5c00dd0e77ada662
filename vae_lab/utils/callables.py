"""Functions configured through Hydra."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def unwrap_partial(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without the per-call checks of Hydra's `_partial_`, which cost 0.1 to 0.3 ms in each step."""
    if not isinstance(function, functools.partial):
        return function
    if not function.args and not function.keywords:
        return function.func
    return functools.partial(function.func, *function.args, **function.keywords)
