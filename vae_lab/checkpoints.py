"""Checkpoint files: written whole or not at all, read without running code."""

from __future__ import annotations

import math
import os
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from vae_lab.errors import UsageError
from vae_lab.interruption import undisturbed

LAST = "last.ckpt"  # what a run resumes from
SECONDS_HELD = 10.0


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file, flushes it to the disk, then renames it over the old one.

    One of the files in `may_wait` that was written a moment ago is held in memory instead, for where epochs take
    milliseconds the best weights change faster than a disk can follow. It is written when that moment is over (`look`),
    before any other file, and at the end: whatever a killed run resumes from, the best weights beside it are those of
    its time.
    """

    def __init__(self, seconds_held: float = SECONDS_HELD) -> None:
        super().__init__()
        self.seconds_held = seconds_held
        self.seconds = 0.0  # that training waited
        self.may_wait: set[Path] = set()  # during a fit
        self._held: dict[Path, dict[str, Any]] = {}
        self._written_at: dict[Path, float] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Save `checkpoint` as `path`; a crash leaves the file that was there before."""
        start, target = time.perf_counter(), Path(path)
        if target in self.may_wait and not self._is_due(target):
            self._held[target] = apply_to_collection(checkpoint, Tensor, copied)
        else:
            self._held.pop(target, None)
            self.flush()
            self._write(checkpoint, target)
        self.seconds += time.perf_counter() - start

    def look(self) -> None:
        """Write what has been held long enough."""
        if any(map(self._is_due, self._held)):
            start = time.perf_counter()
            self.flush()
            self.seconds += time.perf_counter() - start

    def flush(self) -> None:
        """Write what is held."""
        while self._held:
            target = next(iter(self._held))
            self._write(self._held[target], target)
            del self._held[target]

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the file, and what was to be written to it."""
        self._held.pop(Path(path), None)
        self._written_at.pop(Path(path), None)
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        """The end of training, however it came."""
        self.may_wait.clear()
        self.flush()

    def _is_due(self, target: Path) -> bool:
        return time.monotonic() - self._written_at.get(target, -math.inf) >= self.seconds_held

    def _write(self, checkpoint: dict[str, Any], target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        with undisturbed():
            try:
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
        sync_folder(target.parent)
        self._written_at[target] = time.monotonic()

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Tensors and primitive values only, whatever was asked."""
        self.flush()
        return load_checkpoint(path)


def copied(tensor: Tensor) -> Tensor:
    """A copy in the computer's memory."""
    return tensor.detach().to("cpu", copy=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut; Windows opens no folder."""
    if os.name == "nt":
        return
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
