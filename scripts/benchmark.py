"""How fast vae_lab is, always beside something else and in turn with it, since this machine's speed drifts.

python scripts/benchmark.py                  # everything, a quarter of an hour
python scripts/benchmark.py training --quick # one table, a check of a minute
python scripts/benchmark.py --json results.json

Each row is a median over repeats after a warm-up, and the median of the ratios repeat by repeat.
MNIST is read from VAE_LAB_DATA (default: data), as vae_lab reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BATCH = 128


class Row(NamedTuple):
    """A measurement beside its comparison."""

    what: str
    ours: float
    beside: str
    theirs: float
    ratio: float
    wanted: str
    unit: str


def row(what: str, ours: list[float], beside: str, theirs: list[float], wanted: str, unit: str) -> Row:
    """Medians, and the median of the ratios pair by pair."""
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return Row(what, statistics.median(ours), beside, statistics.median(theirs), ratio, wanted, unit)


# Training: a callback of our own trainer runs the other side's epoch after each of ours.


def mnist_pixels() -> Any:
    """The 55,000 training images as vae_lab trains on them, float in [0, 1]."""
    from vae_lab.data.mnist import MNIST

    images = MNIST(os.environ.get("VAE_LAB_DATA", "data")).load()
    return images.pixels[images.splits["train"]].float().div_(255)


def bare_epoch(pixels: Any, seed: int = 0) -> Callable[[], float]:
    """A plain PyTorch loop over tensors in memory: 784-400-z20, fused Adam, float32; returns images per second."""
    import torch
    from torch import nn
    from torch.nn.functional import binary_cross_entropy_with_logits

    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
    decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)

    def epoch() -> float:
        start = time.perf_counter()
        for rows in torch.randperm(len(pixels)).split(BATCH):
            x = torch.bernoulli(pixels[rows])
            mean, logvar = encoder(x).chunk(2, 1)
            z = mean + torch.randn_like(mean) * torch.exp(logvar / 2)
            reconstruction = binary_cross_entropy_with_logits(decoder(z), x.flatten(1), reduction="sum")
            kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
            optimizer.zero_grad()
            ((reconstruction + kl) / len(x)).backward()
            optimizer.step()
        return len(pixels) / (time.perf_counter() - start)

    return epoch


def usual_lightning_epochs(epochs: int) -> list[float]:
    """Lightning over torchvision's MNIST and a default DataLoader; images per second of each epoch."""
    import lightning.pytorch as pl
    import torch
    from torch import nn
    from torch.nn.functional import binary_cross_entropy_with_logits
    from torchvision import datasets, transforms

    class Usual(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
            self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))
            self.rates: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = torch.bernoulli(batch[0])
            mean, logvar = self.encoder(x).chunk(2, 1)
            z = mean + torch.randn_like(mean) * torch.exp(logvar / 2)
            reconstruction = binary_cross_entropy_with_logits(self.decoder(z), x.flatten(1), reduction="sum")
            kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
            loss = (reconstruction + kl) / len(x)
            self.log("train/loss", loss, prog_bar=True)
            self.log("train/kl", kl / len(x))
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

        def on_train_epoch_start(self) -> None:
            self.start = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            self.rates.append(len(dataset) / (time.perf_counter() - self.start))

    root = os.environ.get("VAE_LAB_DATA", "data")
    dataset = datasets.MNIST(root, train=True, transform=transforms.ToTensor())
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=BATCH, shuffle=True, num_workers=2, persistent_workers=True
    )
    with tempfile.TemporaryDirectory() as folder:
        module = Usual()
        pl.Trainer(max_epochs=epochs, default_root_dir=folder, accelerator="cpu", enable_model_summary=False).fit(
            module, loader
        )
    return module.rates


def our_epochs(epochs: int, after_each: Callable[[], float], *overrides: str) -> tuple[list[float], list[float]]:
    """Rates of our own training epochs, and of what `after_each` ran in between; the first of both is warm-up."""
    from hydra import compose, initialize_config_dir
    from lightning.pytorch import Callback

    from vae_lab.build import build
    from vae_lab.callbacks import Throughput
    from vae_lab.config import conf_dir, register
    from vae_lab.interruption import Interruption
    from vae_lab.runs import register_resolvers
    from vae_lab.train import assembled_trainer, quiet_libraries

    register()
    register_resolvers()
    quiet_libraries()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", [*overrides, f"trainer.max_epochs={epochs}"])
    theirs: list[float] = []

    class InTurn(Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            theirs.append(after_each())

    with tempfile.TemporaryDirectory() as folder:
        data, experiment = build(config)
        trainer = assembled_trainer(config, Path(folder), Interruption())
        trainer.callbacks.append(InTurn())
        trainer.fit(experiment, data)
    throughput = next(callback for callback in trainer.callbacks if isinstance(callback, Throughput))
    return throughput.rates[1:], theirs[1:]


def training(quick: bool) -> list[Row]:
    """Images per second of `model=mlp data=mnist` beside the bare loop, and beside Lightning as usually written."""
    repeats, what = 2 if quick else 7, "training, mlp, MNIST"
    ours, bare = our_epochs(repeats + 1, bare_epoch(mnist_pixels()), "model=mlp", "data=mnist")
    usual = usual_lightning_epochs(1 if quick else 3)
    return [
        row(what, ours, "bare PyTorch loop", bare, "at least 0.8", "images/s"),
        row(what, ours[: len(usual)], "Lightning + DataLoader", usual, "far above 1", "images/s"),
    ]


# Whole processes.

FIRST_STEP = """
import os, sys
import vae_lab.train as train
whole = train._train
def until_first_step(*args):
    from vae_lab.steps import TrainingStep
    step = TrainingStep.__call__
    def first(self, *a, **k):
        step(self, *a, **k)
        sys.stdout.flush()
        os._exit(0)
    TrainingStep.__call__ = first
    return whole(*args)
train._train = until_first_step
sys.argv = ["train"]
train.main()
"""


def seconds(command: list[str], folder: str) -> float:
    """Wall time of a process."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def paired(ours: list[str], theirs: list[str], repeats: int) -> tuple[list[float], list[float]]:
    """Wall times in turn, after one of each that does not count."""
    with tempfile.TemporaryDirectory() as folder:
        times = [(seconds(ours, folder), seconds(theirs, folder)) for _ in range(repeats + 1)]
    first, second = zip(*times[1:], strict=True)
    return list(first), list(second)


def startup(quick: bool) -> list[Row]:
    """From the command to the first optimiser step, and --help, beside importing torch and lightning."""
    imports = [sys.executable, "-c", "import torch, lightning"]
    repeats = 2 if quick else 5
    ours, theirs = paired([sys.executable, "-c", FIRST_STEP], imports, repeats)
    rows = [row("command to first step, digits", ours, "import torch, lightning", theirs, "at most 2.5", "s")]
    ours, theirs = paired([sys.executable, "-m", "vae_lab.train", "--help"], imports, repeats)
    rows.append(row("--help", ours, "import torch, lightning", theirs, "well below 1", "s"))
    return rows


def default(quick: bool) -> list[Row]:
    """The default command as a newcomer runs it, beside a minute."""
    repeats = 1 if quick else 3
    with tempfile.TemporaryDirectory() as folder:
        times = [seconds([sys.executable, "-m", "vae_lab.train"], folder) for _ in range(repeats)]
    return [row("the default command", times, "a minute", [60.0] * repeats, "about 1", "s")]


PARTS = {"training": training, "startup": startup, "default": default}


def show(rows: list[Row]) -> None:
    """A table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "ours", "beside", "theirs", "ratio", "wanted", "unit")
    for r in rows:
        table.add_row(r.what, f"{r.ours:,.3g}", r.beside, f"{r.theirs:,.3g}", f"{r.ratio:.2f}", r.wanted, r.unit)
    Console(width=120).print(table)


def main() -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all of them")
    parser.add_argument("--quick", action="store_true", help="fewer repeats: a check of about a minute a part")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    arguments = parser.parse_args()
    rows = [row for part in arguments.parts or PARTS for row in PARTS[part](arguments.quick)]
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([r._asdict() for r in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
