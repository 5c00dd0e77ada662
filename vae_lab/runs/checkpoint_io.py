"""Checkpoint files: written atomically, read without running code."""

from __future__ import annotations

import errno
import os
import pickle
import struct
import time
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
PREVIOUS_BEST = ".best.ckpt.before"  # kept by a stop within an epoch
DAMAGE_ERRORS = (zipfile.BadZipFile, EOFError, zlib.error, struct.error, ValueError, NotImplementedError, RuntimeError)
PENDING = ".next"  # suffix of a file that is renamed once another file is saved


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a temporary file, flush it to the disk, read it back, then rename it over the old one.

    The files in `deferred` (the best weights, which change faster than a disk can follow if epochs take milliseconds)
    are held in memory until another file (the last state) is saved, and are renamed right after it. So a killed run has
    the best weights as of the state that it resumes from, never later ones; `finish_interrupted_saves` completes a save
    that was killed between the two renames.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0  # of training time spent on saving
        self.deferred: set[Path] = set()  # during a fit
        self._held: dict[Path, dict[str, Any]] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Save `checkpoint` as `path`; after a crash the previous file is intact."""
        start, target = time.perf_counter(), Path(path)
        if target in self.deferred:
            self._held[target] = apply_to_collection(checkpoint, Tensor, copy_to_cpu)
        else:
            self._held.pop(target, None)
            self._write_held()
            try:
                write_checkpoint(checkpoint, target)
            except OSError:
                for held in self._held:  # newer than the last state on the disk
                    pending_path(held).unlink(missing_ok=True)
                raise
            self._rename_held()
        self.seconds += time.perf_counter() - start

    def flush(self) -> None:
        """Write the deferred checkpoints."""
        self._write_held()
        self._rename_held()

    def _write_held(self) -> None:
        for held, content in self._held.items():
            write_checkpoint(content, pending_path(held))

    def _rename_held(self) -> None:
        for held in self._held:
            pending_path(held).replace(held)
            fsync_folder(held.parent)
        self._held.clear()

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the file, and its deferred save if there is one."""
        self._held.pop(Path(path), None)
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        """Discard deferred checkpoints: they are newer than the state that a run resumes from."""
        self.deferred.clear()
        self._held.clear()

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load tensors and primitive values only, whatever `weights_only` says."""
        self.flush()
        return load_checkpoint(path)


def pending_path(path: Path) -> Path:
    """The temporary path of a complete file that is renamed once another file is saved."""
    return path.with_name(f".{path.name}{PENDING}")


def finish_interrupted_saves(folder: Path, step: int) -> None:
    """Rename or remove the temporary files that a kill left, for a run that resumes from `step`."""
    for waiting in folder.glob(f".*{PENDING}"):
        if _step_of(waiting) <= step:  # the last state was saved after it: it is the best as of that state
            waiting.replace(folder / waiting.name[1:].removesuffix(PENDING))
        else:
            waiting.unlink()
    if (before := folder / PREVIOUS_BEST).is_file():
        before.replace(folder / BEST)
    for partial in folder.glob(".*.partial"):
        partial.unlink()


def _step_of(path: Path) -> int:
    step: int = load_checkpoint(path)["global_step"]
    return step


def write_checkpoint(checkpoint: dict[str, Any], target: Path) -> None:
    """Save as `target` and verify it, or raise OSError (no space, no permission) and keep the previous file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with defer_sigint():
        try:
            with partial.open("wb") as file:
                _save(checkpoint, file)
                fsync(file)
            if (found := find_damage(partial)) is not None:
                raise OSError(errno.EIO, f"the written file does not read back ({found})", str(partial))
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
