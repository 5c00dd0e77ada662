"""Checkpoint files: written whole or not at all, read without running code."""

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

LAST = "last.ckpt"  # what a run resumes from
BEST = "best.ckpt"
PREVIOUS_BEST = ".best.ckpt.before"  # of a stop within an epoch
DAMAGE_ERRORS = (zipfile.BadZipFile, EOFError, zlib.error, struct.error, ValueError, NotImplementedError, RuntimeError)
PENDING = ".next"  # of a file that takes its place as soon as another one is there


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file, flushes it to the disk, reads it back, then renames it over the old one.

    The files in `deferred` (the best weights, which change faster than a disk can follow where epochs take
    milliseconds) are held in memory until another file is saved (the last state), and take their names right after it.
    So a killed run finds the best weights of the state that it goes on from, never later ones;
    `finish_interrupted_saves` completes what a kill cut between the two names.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0  # that training waited
        self.deferred: set[Path] = set()  # during a fit
        self._held: dict[Path, dict[str, Any]] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Save `checkpoint` as `path`; a crash leaves the file that was there before."""
        start, target = time.perf_counter(), Path(path)
        if target in self.deferred:
            self._held[target] = apply_to_collection(checkpoint, Tensor, copy_to_cpu)
        else:
            self._held.pop(target, None)
            self._write_held()
            try:
                write_checkpoint(checkpoint, target)
            except OSError:
                for held in self._held:  # they are later than what stays on the disk
                    pending_path(held).unlink(missing_ok=True)
                raise
            self._rename_held()
        self.seconds += time.perf_counter() - start

    def flush(self) -> None:
        """Write what is held."""
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
        """Remove the file, and what was to be written to it."""
        self._held.pop(Path(path), None)
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        """The end of training, however it came. What is still held is later than what a run would go on from."""
        self.deferred.clear()
        self._held.clear()

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Tensors and primitive values only, whatever was asked."""
        self.flush()
        return load_checkpoint(path)


def pending_path(path: Path) -> Path:
    """Where a file waits, whole, for another one to be there."""
    return path.with_name(f".{path.name}{PENDING}")


def finish_interrupted_saves(folder: Path, step: int) -> None:
    """Finish what a kill cut short, for a run that goes on from `step`: names to give, temporary files to remove."""
    for waiting in folder.glob(f".*{PENDING}"):
        if _step_of(waiting) <= step:  # the last state was saved, and says that this is the best one of its time
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
    """Save as `target`, whole and read back, or raise and leave what was there. OSError: no room, no right to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with defer_sigint():
        try:
            with partial.open("wb") as file:
                _save(checkpoint, file)
                fsync(file)
            if (found := find_damage(partial)) is not None:
                raise OSError(errno.EIO, f"what was written does not read back ({found})", str(partial))
            partial.replace(target)
        except OSError as error:
            error.filename = error.filename or str(target)  # a refused write does not say of which file
            raise
        finally:
            partial.unlink(missing_ok=True)
    fsync_folder(target.parent)


def _save(checkpoint: dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # torch's own words for a full disk tell of positions in the file
        raise find_cause(error, OSError) or error from error


def copy_to_cpu(tensor: Tensor) -> Tensor:
    """A copy in the computer's memory."""
    return tensor.detach().to("cpu", copy=True)


def find_damage(path: str | os.PathLike[str]) -> str | None:
    """What is wrong with the bytes of a checkpoint: its archive's own checksums find what torch.load misses."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except DAMAGE_ERRORS as error:
        return str(error) or type(error).__name__
    return part and f"in {part}"


def _damaged(path: str | os.PathLike[str], found: str) -> UsageError:
    way_out = "another one beside it can be given instead: resume=RUN/checkpoints/best.ckpt"
    if Path(path).name == BEST:
        way_out = "remove it: resume=RUN goes on from last.ckpt without it, as does vae_lab.load(RUN, 'last')"
    return UsageError(f"{path}: the checkpoint is damaged or not whole ({found}); {way_out}")


def load_checkpoint(path: str | os.PathLike[str], needed: Iterable[str] = ()) -> dict[str, Any]:
    """A checkpoint on the CPU.

    UsageError: missing, damaged, holding anything but tensors and plain values, or without what is `needed`.
    """
    try:
        found = find_damage(path)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such checkpoint; give a run folder that vae_lab.train wrote") from error
    if found is not None:
        raise _damaged(path, found)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path}: refused, since loading it would run code from the file; "
            "a checkpoint of vae_lab holds tensors and plain values only"
        ) from error
    except DAMAGE_ERRORS as error:
        raise _damaged(path, str(error)) from error
    if missing := [name for name in needed if not isinstance(checkpoint, dict) or name not in checkpoint]:
        raise UsageError(f"{path}: holds no {missing[0]}, which the checkpoints of this version of vae_lab have")
    return checkpoint
