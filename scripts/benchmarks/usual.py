"""Lightning over torchvision's MNIST and a DataLoader, as its tutorials write it."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from scripts.benchmarks.bare import perceptrons, terms
from scripts.benchmarks.workers import Turn, data_root

BATCH = 128


class Usual(pl.LightningModule):
    """784-400-z20, dynamically binarised."""

    def __init__(self, turn: Turn) -> None:
        super().__init__()
        self.turn = turn
        self.network = perceptrons()
        self.encoder, self.decoder = self.network.encoder, self.network.decoder
        self.images, self.started = 0, 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One batch."""
        x = torch.bernoulli(batch[0])
        self.images += len(x)
        log_px, kl = terms(self.network, x)
        loss = (kl - log_px) / len(x)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/kl", kl / len(x))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def on_train_start(self) -> None:
        """Everything is set up."""
        self.turn()

    def on_train_epoch_start(self) -> None:
        """Start the clock."""
        self.images, self.started = 0, time.perf_counter()

    def on_train_epoch_end(self) -> None:
        """Images per second of the epoch."""
        self.turn(self.images / (time.perf_counter() - self.started))


def lightning(turn: Turn, num_workers: int, steps: int | None = None) -> None:
    """Training, an epoch or so many steps a repeat."""
    dataset = datasets.MNIST(str(data_root()), train=True, transform=transforms.ToTensor())
    loader = DataLoader(
        dataset, batch_size=BATCH, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    pl.Trainer(max_epochs=-1, limit_train_batches=steps or 1.0, accelerator="cpu", enable_model_summary=False).fit(
        Usual(turn), loader
    )
