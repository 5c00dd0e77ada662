"""Step records, read from the device on demand and summed since the last log entry and over the epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vae_lab.training.step import StepRecord

Terms = dict[str, float]  # loss, log_px, kl, and the terms the objective adds


@dataclass
class TermSums:
    """Sums of the terms over images in double precision, so that they do not depend on how often steps are read."""

    totals: list[float]
    num_images: int = 0

    def add(self, terms: Tensor, images: Tensor) -> None:
        """Add steps. terms: means, (steps, terms); images: number of images of each step, (steps,)."""
        self.totals = (torch.tensor(self.totals, dtype=torch.float64) + images @ terms).tolist()
        self.num_images += int(images.sum())

    def means(self, names: Sequence[str]) -> Terms:
        """`train/elbo`, `train/log_px` and so on, in nats per image; empty without images."""
        if not self.num_images:
            return {}
        means = dict(zip(names, (total / self.num_images for total in self.totals), strict=True))
        order = ("log_px", "kl", *(name for name in names if name not in ("log_px", "kl")))
        return {"train/elbo": means["log_px"] - means["kl"]} | {f"train/{name}": means[name] for name in order}


class StepLog:
    """Records of unread steps, and sums over the steps read."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.last_norm: Tensor | None = None
        self._unread: list[StepRecord] = []
        self._since_log, self._epoch = self._empty(), self._empty()

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
        for sums in (self._since_log, self._epoch):
            sums.add(terms[~nonfinite], images[~nonfinite])
        self.last_norm = records[-1].gradient_norm
        rows = nonfinite.nonzero().flatten().tolist()
        return {row: dict(zip(self.names, terms[row].tolist(), strict=True)) for row in rows}

    def means_since_log(self) -> Terms:
        """Means over the steps read since the last call."""
        sums, self._since_log = self._since_log, self._empty()
        return sums.means(self.names)

    def epoch_means(self) -> Terms:
        return self._epoch.means(self.names)

    def start_epoch(self) -> None:
        self._epoch = self._empty()

    def _empty(self) -> TermSums:
        return TermSums([0.0] * len(self.names))

    def state_dict(self) -> dict[str, Any]:
        """Sums only: all steps must have been read before."""
        return {"since_log": asdict(self._since_log), "epoch": asdict(self._epoch)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._since_log, self._epoch = TermSums(**state["since_log"]), TermSums(**state["epoch"])
