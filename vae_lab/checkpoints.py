"""Checkpoint files: written whole or not at all, read without running code."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vae_lab.errors import UsageError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file, flushes it to the disk, then renames it over the old one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Save `checkpoint` as `path`; a crash leaves the file that was there before."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(target.parent)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Tensors and primitive values only, whatever was asked."""
        return load_checkpoint(path)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint on the CPU. UsageError: missing, damaged, or holding anything but tensors and plain values."""
    try:
        # The archive's own checksums find every flipped byte; torch.load alone misses half.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise UsageError(f"{path}: the checkpoint is damaged (in {damaged}); use another one of the run")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such checkpoint; give a run folder that vae_lab.train wrote") from error
    except (zipfile.BadZipFile, EOFError) as error:
        raise UsageError(f"{path}: not a whole checkpoint ({error}); use another one of the run") from error
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path}: refused, since loading it would run code from the file; "
            "a checkpoint of vae_lab holds tensors and plain values only"
        ) from error
    return checkpoint
