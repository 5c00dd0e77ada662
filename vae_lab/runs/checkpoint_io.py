"""Checkpoint files: written atomically, read without running code."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from vae_lab.utils.errors import UsageError, find_cause
from vae_lab.utils.files import fsync, fsync_folder
from vae_lab.utils.signals import defer_sigint

LAST = "last.ckpt"  # the state that a run resumes from
BEST = "best.ckpt"
DAMAGE_ERRORS = (zipfile.BadZipFile, EOFError, zlib.error, struct.error, ValueError, NotImplementedError, RuntimeError)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a temporary file, flush it to the disk, then rename it over the old one.

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
            self._held = Path(path), apply_to_collection(checkpoint, Tensor, copy_to_cpu)
            return
        self.flush()
        write_checkpoint(checkpoint, Path(path))

    def flush(self) -> None:
        """Write the best weights, if they are held."""
        if self._held is not None:
            path, checkpoint = self._held
            write_checkpoint(checkpoint, path)
            self._held = None

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the file, and its held save if there is one."""
        if self._held is not None and self._held[0] == Path(path):
            self._held = None
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        """Discard what is held: it is newer than the state that a run resumes from."""
        self._held = None

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load tensors and primitive values only, whatever `weights_only` says."""
        self.flush()
        return load_checkpoint(path)


def write_checkpoint(checkpoint: dict[str, Any], target: Path) -> None:
    """Save as `target`, or raise OSError (no space, no permission) and keep the previous file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with defer_sigint():
        try:
            with partial.open("wb") as file:
                _save(checkpoint, file)
                fsync(file)
            partial.replace(target)
        except OSError as error:
            error.filename = error.filename or str(target)  # a failed write does not name its file
            raise
        finally:
            partial.unlink(missing_ok=True)
    fsync_folder(target.parent)


def _save(checkpoint: dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # on a full disk torch reports only file positions
        raise find_cause(error, OSError) or error from error


def copy_to_cpu(tensor: Tensor) -> Tensor:
    """A detached copy, even of a tensor that is on the CPU already."""
    return tensor.detach().to("cpu", copy=True)


def find_damage(path: str | os.PathLike[str]) -> str | None:
    """The damage of a checkpoint file, None if intact; the checksums of the archive find what torch.load misses."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except DAMAGE_ERRORS as error:
        return str(error) or type(error).__name__
    return part and f"in {part}"


def _damaged(path: str | os.PathLike[str], found: str) -> UsageError:
    remedy = "resume from another checkpoint of the run: resume=RUN/checkpoints/best.ckpt"
    if Path(path).name == BEST:
        remedy = "remove it: resume=RUN uses last.ckpt without it, as does vae_lab.load(RUN, 'last')"
    return UsageError(f"{path}: the checkpoint is damaged or incomplete ({found}); {remedy}")


def load_checkpoint(path: str | os.PathLike[str], needed: Iterable[str] = ()) -> dict[str, Any]:
    """Load a checkpoint to the CPU.

    UsageError: missing, damaged, with objects other than tensors and primitive values, or without a key of `needed`.
    """
    try:
        found = find_damage(path)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such checkpoint; expected a run directory written by vae_lab.train") from error
    if found is not None:
        raise _damaged(path, found)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path}: refused, because loading it would run code from the file; "
            "a checkpoint of vae_lab holds only tensors and primitive values"
        ) from error
    except DAMAGE_ERRORS as error:
        raise _damaged(path, str(error)) from error
    if missing := [name for name in needed if not isinstance(checkpoint, dict) or name not in checkpoint]:
        raise UsageError(f"{path}: holds no {missing[0]}, which this version of vae_lab expects")
    return checkpoint
