"""What a run leaves, compared to the bit with what another one left."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Names of files and folders; and counts of calls, which hold several steps each.
NOT_COMPARED = {"epoch", "event_files", "pytorch-lightning_version", "dirpath", "loops"}
OF_THE_RUN = ("train/", "val/", "test/", "kl/", "images/", "latents/", "active_units", "learning_rate", "beta", "grad")


def differences(run: Path, other: Path) -> list[str]:
    """What is not the same: weights, averages, optimiser, sums, tables, event files, pictures, results."""
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        ours, theirs = (dict(leaves(torch.load(folder / "checkpoints" / name))) for folder in (run, other))
        keys = sorted(ours.keys() | theirs.keys())
        found += [f"{name}: {key}" for key in keys if not same(ours.get(key), theirs.get(key))]
    if (run / "metrics.csv").read_bytes() != (other / "metrics.csv").read_bytes():
        found.append("metrics.csv")
    ours, theirs = events(run), events(other)
    found += [f"event files: {event}" for event in sorted((ours - theirs) + (theirs - ours))]
    ours, theirs = pictures(run), pictures(other)
    found += [f"images: {name}" for name in sorted(ours.keys() | theirs.keys()) if ours.get(name) != theirs.get(name)]
    results = [json.loads((folder / "summary.json").read_text()) for folder in (run, other)]
    keys = ("status", "metrics", "best_metrics", "warnings", "steps", "epochs")
    return found + [f"summary.json: {key}" for key in keys if results[0][key] != results[1][key]]


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a checkpoint by their path; files by their names alone."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in NOT_COMPARED:
                yield from leaves(item, f"{where}/{Path(str(key)).name}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from leaves(item, f"{where}/{index}")
    else:
        yield where, Path(value).name if isinstance(value, str) else value


def same(a: Any, b: Any) -> bool:
    """To the bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


def events(run: Path) -> Counter[tuple[str, int, str]]:
    """How often each value is in TensorBoard's files: (tag, step, what it is)."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: Counter[tuple[str, int, str]] = Counter()
    for path in sorted((run / "tensorboard").glob("events.out.tfevents.*")):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag.startswith(OF_THE_RUN):
                    text = value.SerializeToString(deterministic=True)
                    found[value.tag, event.step, str(hash(text)) if len(text) > 64 else text.hex()] += 1
    return found


def pictures(run: Path) -> dict[str, bytes]:
    """The PNG files; an animation joins them."""
    return {path.name: path.read_bytes() for path in (run / "images").glob("*.png")}
