"""Data sets by name: what `data._target_` calls. Each takes the options of `BatchOptions` besides its own.

Everything heavy is imported when a name is first used, so that `vae_lab.data.download` starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_lab.data.module import ImageData as ImageData
    from vae_lab.data.sets import digits as digits
    from vae_lab.data.sets import fashion_mnist as fashion_mnist
    from vae_lab.data.sets import folder as folder
    from vae_lab.data.sets import mnist as mnist

_HOMES = {
    "ImageData": "vae_lab.data.module",
    "digits": "vae_lab.data.sets",
    "mnist": "vae_lab.data.sets",
    "fashion_mnist": "vae_lab.data.sets",
    "folder": "vae_lab.data.sets",
}
__all__ = ["ImageData", "digits", "fashion_mnist", "folder", "mnist"]


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
