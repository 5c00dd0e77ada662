"""What the steps leave: read from the device when somebody asks, summed since the last log line and over the epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_lab.training.step import StepRecord

Terms = dict[str, float]  # loss, log_px, kl, and what the objective adds


class TermSums:
    """Sums of the terms over images, in double precision: exact, so it does not matter how often they were read."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.reset()

    def reset(self) -> None:
        """Nothing."""
        self.totals = torch.zeros(len(self.names), dtype=torch.float64)
        self.num_images = 0

    def add(self, terms: Tensor, images: Tensor) -> None:
        """Means (steps, terms) of so many images each (steps,)."""
        self.totals += images @ terms
        self.num_images += int(images.sum())

    def means(self) -> dict[str, float]:
        """`train/elbo` and so on, in nats per image; empty without images."""
        if not self.num_images:
            return {}
        means = _by_name(self.names, self.totals / self.num_images)
        order = ("log_px", "kl", *(name for name in self.names if name not in ("log_px", "kl")))
        return {"train/elbo": means["log_px"] - means["kl"]} | {f"train/{name}": means[name] for name in order}

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"totals": self.totals.tolist(), "num_images": self.num_images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As they were."""
        self.totals = torch.tensor(state["totals"], dtype=torch.float64)
        self.num_images = state["num_images"]


class StepLog:
    """The steps not read yet, and the sums of those that were."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.since_log, self.epoch = TermSums(names), TermSums(names)
        self.last_norm: Tensor | None = None
        self._unread: list[StepRecord] = []

    def __len__(self) -> int:
        return len(self._unread)

    def add(self, record: StepRecord) -> None:
        """One more step; nothing is read."""
        self._unread.append(record)

    def read(self, mean: Callable[[Tensor], Tensor]) -> dict[int, tuple[Terms, Terms]]:
        """Take in all steps that were not read yet; `mean`: over devices.

        Returns the terms of those that were not finite by their place among them, over devices and of this one.
        """
        records, self._unread = self._unread, []
        if not records:
            return {}
        own = torch.stack([record.terms for record in records])
        terms = mean(own.clone()).double().cpu()
        nonfinite = torch.stack([record.nonfinite for record in records]).cpu() > 0
        images = torch.tensor([float(record.num_images) for record in records], dtype=torch.float64)
        for sums in (self.since_log, self.epoch):
            sums.add(terms[~nonfinite], images[~nonfinite])
        self.last_norm = records[-1].gradient_norm
        rows = nonfinite.nonzero().flatten().tolist()
        return {row: (_by_name(self.names, terms[row]), _by_name(self.names, own[row])) for row in rows}

    def state_dict(self) -> dict[str, Any]:
        """Plain values; whoever saves has read all steps."""
        return {"since_log": self.since_log.state_dict(), "epoch": self.epoch.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As it was."""
        self.since_log.load_state_dict(state["since_log"])
        self.epoch.load_state_dict(state["epoch"])


def _by_name(names: Sequence[str], terms: Tensor) -> Terms:
    return dict(zip(names, terms.tolist(), strict=True))
