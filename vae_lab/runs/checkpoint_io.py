"""Checkpoint files: written atomically, read without running code."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import write_atomically

LAST = "last.ckpt"  # the state that a run resumes from
BEST = "best.ckpt"
DAMAGE_ERRORS = (zipfile.BadZipFile, EOFError, zlib.error, struct.error, ValueError, NotImplementedError, RuntimeError)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replace a checkpoint only by a complete one that is on the disk.

    hold_best: keep best.ckpt in memory until last.ckpt is saved, and write both together: if epochs take milliseconds,
    the best weights change faster than a disk can follow.
    """

    def __init__(self, hold_best: bool = False) -> None:
        super().__init__()
        self.hold_best = hold_best
        self._held: tuple[Path, dict[str, Any]] | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Save `checkpoint` as `path`; after a crash the previous file is intact."""
        if self.hold_best and Path(path).name == BEST:
            copy = apply_to_collection(checkpoint, Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))
            self._held = Path(path), copy
            return
        self.flush()
        write_checkpoint(checkpoint, Path(path))

    def flush(self) -> None:
        """Write the best weights, if they are held."""
        if self._held is not None:
            path, checkpoint = self._held
            write_checkpoint(checkpoint, path)
            self._held = None

    def teardown(self) -> None:
        """Discard what is held: it is newer than the state that a run resumes from."""
        self._held = None

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load tensors and primitive values only, whatever `weights_only` says."""
        self.flush()
        return load_checkpoint(path)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Save as `path`, or raise OSError (no space, no permission) and keep the previous file."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_atomically(path, buffer.getbuffer())


def load_checkpoint(
    path: str | os.PathLike[str], needed: Iterable[str] = (), remedy: str | None = None
) -> dict[str, Any]:
    """Load a checkpoint to the CPU.

    remedy: advice if it is damaged; default: that for a run's. UsageError: missing, damaged, with objects other than
    tensors and primitive values, or without a key of `needed`.
    """
    try:
        _require_checksums(path)
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        expected = remedy or "expected a run directory written by vae_lab.train"
        raise UsageError(f"{path}: no such checkpoint; {expected}") from error
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path}: refused, because loading it would run code from the file; "
            "a checkpoint of vae_lab holds only tensors and primitive values"
        ) from error
    except DAMAGE_ERRORS as error:
        advice = "resume from another checkpoint of the run: resume=RUN/checkpoints/best.ckpt"
        if Path(path).name == BEST:
            advice = "remove it: resume=RUN uses last.ckpt without it, as does vae_lab.load(RUN, 'last')"
        found = str(error) or type(error).__name__
        raise UsageError(f"{path}: the checkpoint is damaged or incomplete ({found}); {remedy or advice}") from error
    if missing := [name for name in needed if not isinstance(checkpoint, dict) or name not in checkpoint]:
        raise UsageError(f"{path}: holds no {missing[0]}, which this version of vae_lab expects")
    return checkpoint


def _require_checksums(path: str | os.PathLike[str]) -> None:
    """Raise BadZipFile at a part whose checksum is wrong, which torch.load does not see."""
    with zipfile.ZipFile(path) as archive:
        if (part := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"in {part}")
