"""Step records, read from the device on demand and summed since the last log entry and over the epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_lab.training.step import StepRecord

Terms = dict[str, float]  # loss, log_px, kl, and the terms the objective adds


class TermSums:
    """Sums of the terms over images in float64, so that they do not depend on how often steps are read."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.reset()

    def reset(self) -> None:
        self.totals = torch.zeros(len(self.names), dtype=torch.float64)
        self.num_images = 0

    def add(self, terms: Tensor, images: Tensor) -> None:
        """Add steps. terms: means, (steps, terms); images: number of images of each step, (steps,)."""
        self.totals += images @ terms
        self.num_images += int(images.sum())

    def means(self) -> dict[str, float]:
        """`train/elbo`, `train/log_px` and so on, in nats per image; empty without images."""
        if not self.num_images:
            return {}
        means = _by_name(self.names, self.totals / self.num_images)
        order = ("log_px", "kl", *(name for name in self.names if name not in ("log_px", "kl")))
        return {"train/elbo": means["log_px"] - means["kl"]} | {f"train/{name}": means[name] for name in order}

    def state_dict(self) -> dict[str, Any]:
        return {"totals": self.totals.tolist(), "num_images": self.num_images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.totals = torch.tensor(state["totals"], dtype=torch.float64)
        self.num_images = state["num_images"]


class StepLog:
    """Records of unread steps, and sums over the steps read."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.since_log, self.epoch = TermSums(names), TermSums(names)
        self.last_norm: Tensor | None = None
        self._unread: list[StepRecord] = []

    def __len__(self) -> int:
        return len(self._unread)

    def add(self, record: StepRecord) -> None:
        """Append a step; nothing is read from the device."""
        self._unread.append(record)

    def read(self, mean: Callable[[Tensor], Tensor]) -> dict[int, Terms]:
        """Read and sum all unread steps; `mean` averages over devices.

        Returns the non-finite steps: index among the unread steps -> terms, the mean over devices.
        """
        records, self._unread = self._unread, []
        if not records:
            return {}
        terms = mean(torch.stack([record.terms for record in records])).double().cpu()
        nonfinite = torch.stack([record.nonfinite for record in records]).cpu() > 0
        images = torch.tensor([float(record.num_images) for record in records], dtype=torch.float64)
        for sums in (self.since_log, self.epoch):
            sums.add(terms[~nonfinite], images[~nonfinite])
        self.last_norm = records[-1].gradient_norm
        rows = nonfinite.nonzero().flatten().tolist()
        return {row: _by_name(self.names, terms[row]) for row in rows}

    def state_dict(self) -> dict[str, Any]:
        """Sums only: all steps must have been read before."""
        return {"since_log": self.since_log.state_dict(), "epoch": self.epoch.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.since_log.load_state_dict(state["since_log"])
        self.epoch.load_state_dict(state["epoch"])


def _by_name(names: Sequence[str], terms: Tensor) -> Terms:
    return dict(zip(names, terms.tolist(), strict=True))
