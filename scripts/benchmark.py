"""How fast and how large vae_lab is, always beside something else and in turn with it, since a machine's speed drifts.

    python scripts/benchmark.py                   # everything, about an hour
    python scripts/benchmark.py grey-1 memory     # two rows
    python scripts/benchmark.py --quick           # a check of a few minutes that everything works
    python scripts/benchmark.py --json FILE       # also every repeat, and the machine

Each measurement is a process of its own: for vae_lab the command that a user types and its summary.json, for the other
side a script with the same network, the same binarisation and as many images. A row gives the medians over the repeats
and the median of the ratios, repeat by repeat. MNIST and the pictures of Pokemon are read from VAE_LAB_DATA (default:
data) and never downloaded; pythae takes part where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from torchvision import datasets, transforms
from torchvision.io import write_png

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("VAE_LAB_DATA", "data")).expanduser().absolute()
TRAIN = [sys.executable, "-m", "vae_lab.train"]
NO_PICTURES = "callbacks.images=null"
# What a bare loop does not do is off.
PLAIN_POKEMON = ["data=pokemon", "data.flip=false", "data.shift=0", "data.zoom=0", "model/likelihood=gaussian_optimal",
                 "optimizer/schedule=constant", "optimizer.ema_decay=null", "second_stage=null"]  # fmt: skip
BATCH, TRAIN_IMAGES = 128, 55_000  # of MNIST; the validation set is the rest of its 60,000


class Row(NamedTuple):
    """A measurement beside its comparison: medians, and what every repeat gave."""

    what: str
    ours: float
    beside: str
    theirs: float
    ratio: float
    unit: str
    all_ours: list[float]
    all_theirs: list[float]


def compared(what: str, ours: Sequence[float], beside: str, theirs: Sequence[float], unit: str = "images/s") -> Row:
    """Medians, and the median of the ratios pair by pair."""
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return Row(what, statistics.median(ours), beside, statistics.median(theirs), ratio, unit, [*ours], [*theirs])


# --- processes --------------------------------------------------------------------------------------------


class ProcessError(RuntimeError):
    """A process ended with an error; the message is the end of what it wrote."""


def environment(threads: int | None = None) -> dict[str, str]:
    """This vae_lab rather than an installed one, and so many threads of torch."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    chosen = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**os.environ, "VAE_LAB_DATA": str(DATA), "PYTHONPATH": paths, **chosen}


class Done(NamedTuple):
    """A process that ended."""

    seconds: float
    mebibytes: float  # the most resident memory
    stdout: str


def run(command: Sequence[str], folder: str | Path, threads: int | None = None) -> Done:
    """Wait for a command in a folder. ProcessError: its exit code is not 0."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment(threads), stdout=out, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds, process.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
        out.seek(0), errors.seek(0)
        if process.returncode:
            raise ProcessError(f"{' '.join(command[1:4])} ended with {process.returncode}\n{errors.read()[-2000:]}")
        return Done(seconds, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), out.read())


def side_command(name: str, **options: Any) -> list[str]:
    """The command of a function in SIDES."""
    return [sys.executable, str(Path(__file__).resolve()), "--side", name, json.dumps(options)]


def side(name: str, threads: int | None = None, **options: Any) -> float:
    """What a function in SIDES measures, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return float(run(side_command(name, **options), folder, threads).stdout.split()[-1])


def trained(overrides: Sequence[str], threads: int | None = None, run_dir: str = "") -> dict[str, Any]:
    """The summary.json of a run of vae_lab; nothing else is kept unless a run directory is named."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = run_dir or f"{folder}/run"
        run([*TRAIN, *overrides, f"hydra.run.dir={run_dir}"], folder, threads)
        summary: dict[str, Any] = json.loads((Path(run_dir) / "summary.json").read_text())
        return summary


def trained_speed(overrides: Sequence[str], threads: int | None = None) -> float:
    """Images per second of the training loop, the median of the epochs after the first."""
    return float(trained(overrides, threads)["images_per_second"])


def first_step_seconds(overrides: Sequence[str] = ()) -> float:
    """From the command to the checkpoint of its first optimiser step; then the run is killed."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "output.txt").open("w+") as output:
        command = [*TRAIN, *overrides, "callbacks.last.every_n_steps=1", f"hydra.run.dir={folder}/run"]
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=output, stderr=output)
        while not (Path(folder) / "run" / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
            time.sleep(0.005)
        seconds = time.perf_counter() - start
        process.kill()
        if process.wait() > 0:
            raise ProcessError(Path(output.name).read_text()[-2000:])
        return seconds


def in_turn(repeats: int, *measure: Callable[[], float]) -> list[list[float]]:
    """What each measurement gave at each repeat, one after the other."""
    rounds = [[each() for each in measure] for _ in range(repeats)]
    return [list(values) for values in zip(*rounds, strict=True)]


# --- the other sides: what a careful user writes, in processes of their own ----------------------------------


class Clock:
    """Images per second of each epoch of so many images; `rate` is the median of those after the first."""

    def __init__(self, num_images: int) -> None:
        self.num_images, self.started, self.rates = num_images, 0.0, list[float]()

    def start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def stop(self, *_: Any) -> None:
        self.rates.append(self.num_images / (time.perf_counter() - self.started))

    @property
    def rate(self) -> float:
        return statistics.median(self.rates[1:] or self.rates)


def mnist(num_images: int = TRAIN_IMAGES) -> Tensor:
    """The first training images, float (N, 1, 28, 28) in [0, 1]."""
    return datasets.MNIST(str(DATA), train=True).data[:num_images].unsqueeze(1).float().div_(255)


def perceptrons() -> tuple[nn.Module, nn.Module]:
    """784-400-20, as model=mlp: encoder to mean and log variance, decoder to logits."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
    return encoder, nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Unflatten(1, (1, 28, 28)))


def networks_of(run_dir: str) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of a run, in contiguous layout."""
    import vae_lab

    model: Any = vae_lab.load(run_dir).model.requires_grad_(True).to(memory_format=torch.contiguous_format)
    return model.encoder, model.decoder


def terms(encoder: nn.Module, decoder: nn.Module, x: Tensor, gaussian: bool = False) -> tuple[Tensor, Tensor]:
    """log p(x|z) of one sample and KL(q || p), summed; p is Bernoulli, or a Gaussian of the optimal variance."""
    mean, logvar = encoder(x).chunk(2, 1)
    logits = decoder(mean + torch.randn_like(mean) * torch.exp(logvar / 2))
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
    if not gaussian:
        return -binary_cross_entropy_with_logits(logits, x, reduction="sum"), kl
    squares = (logits.sigmoid() - x).square().sum()
    variance = squares.detach() / x.numel()
    return -0.5 * (squares / variance + x.numel() * (variance.log() + math.log(2 * math.pi))), kl


def bare(epochs: int, dynamic: bool, steps: int | None = None, run_dir: str = "", pokemon: bool = False,
         device: str = "cpu", batch: int = 0) -> float:  # fmt: skip
    """A loop over tensors in memory with fused Adam: 784-400-20, or the networks of a run; in bf16 on a GPU."""
    encoder, decoder = (part.to(device) for part in (networks_of(run_dir) if run_dir else perceptrons()))
    # What a step costs does not depend on what it sees.
    shape = (635, 3, 128, 128) if pokemon else (TRAIN_IMAGES, 1, 28, 28)
    images, batch = torch.rand(shape, device=device), batch or (32 if pokemon else BATCH)
    most = min(len(images), (steps or len(images)) * batch)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)
    clock = Clock(most)
    for _ in range(epochs):
        clock.start()
        for rows in torch.randperm(len(images), device=device)[:most].split(batch):
            x = torch.bernoulli(images[rows]) if dynamic else images[rows]
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                log_px, kl = terms(encoder, decoder, x, gaussian=pokemon)
            optimizer.zero_grad()
            ((kl - log_px) / len(x)).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        clock.stop()
    return clock.rate


def usual(epochs: int, dynamic: bool, steps: int | None = None) -> float:
    """Lightning over torchvision's MNIST and a DataLoader, as its tutorials write it."""
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader, Subset

    class Usual(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = perceptrons()
            self.on_train_epoch_start, self.on_train_epoch_end = clock.start, clock.stop

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = torch.bernoulli(batch[0]) if dynamic else batch[0]
            log_px, kl = terms(self.encoder, self.decoder, x)
            loss = (kl - log_px) / len(x)
            self.log("train/loss", loss, prog_bar=True)
            self.log("train/kl", kl / len(x))
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    clock = Clock(min(TRAIN_IMAGES, (steps or TRAIN_IMAGES) * BATCH))
    images = Subset(datasets.MNIST(str(DATA), train=True, transform=transforms.ToTensor()), range(TRAIN_IMAGES))
    trainer = pl.Trainer(max_epochs=epochs, limit_train_batches=steps or 1.0, accelerator="cpu")
    trainer.fit(Usual(), DataLoader(images, batch_size=BATCH, shuffle=True))
    return clock.rate


def pythae(epochs: int, dynamic: bool, steps: int | None = None) -> float:
    """pythae's BaseTrainer over a tensor in memory; its own networks with 400 units in place of 512."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Binarised(VAE):
        def forward(self, inputs: Any, **options: Any) -> Any:
            x = inputs["data"]
            return super().forward({"data": torch.bernoulli(x) if dynamic else x}, **options)

    class Timed(BaseTrainer):
        def train_step(self, epoch: int) -> Any:
            clock.start()
            loss = super().train_step(epoch)
            clock.stop()
            return loss

    images = mnist(min(TRAIN_IMAGES, (steps or TRAIN_IMAGES) * BATCH))
    clock = Clock(len(images))
    model = Binarised(VAEConfig((1, 28, 28), latent_dim=20, reconstruction_loss="bce"))
    model.encoder.layers[0][0], model.decoder.layers[0][0] = nn.Linear(784, 400), nn.Linear(20, 400)
    model.encoder.embedding, model.encoder.log_var = nn.Linear(400, 20), nn.Linear(400, 20)
    model.decoder.layers[1][0] = nn.Linear(400, 784)
    config = BaseTrainerConfig("out", BATCH, num_epochs=epochs, learning_rate=1e-3, no_cuda=True)
    Timed(model, BaseDataset(images, torch.zeros(len(images))), training_config=config).train()
    return clock.rate


@torch.inference_mode()
def bare_validation(passes: int, num_images: int) -> float:
    """The sums of log p(x|z) and the KL over a set binarised before."""
    images, networks, clock = torch.bernoulli(mnist(num_images)), perceptrons(), Clock(passes * num_images)
    clock.start()
    for _ in range(passes):
        torch.stack([torch.stack(terms(*networks, x)) for x in images.split(500)]).sum(0).tolist()
    clock.stop()
    return clock.rate


def bound(run_dir: str, passes: int, num_images: int, num_samples: int, way: str) -> float:
    """The importance-weighted bound of a run's model: `log_likelihood`, written out, or one image at a time."""
    import vae_lab

    lab: Any = vae_lab.load(run_dir)
    networks = lab.model.encoder, lab.model.decoder
    ways: dict[str, Callable[[Tensor, int], object]] = {
        "ours": lab.log_likelihood,
        "bare": partial(bare_bound, *networks),
        "one image": lambda x, k: [bare_bound(*networks, row, k, chunk=k) for row in x.split(1)],
        "pythae": lambda x, k: with_weights_of(lab.model).get_nll(x, k, batch_size=100),
    }
    x, clock = torch.bernoulli(mnist(num_images), generator=torch.Generator().manual_seed(0)), Clock(num_images)
    for _ in range(passes + 1):
        clock.start()
        ways[way](x, num_samples)
        clock.stop()
    return clock.rate


def with_weights_of(model: Any) -> Any:
    """pythae's VAE with the weights of ours, 784-400-20."""
    from pythae.models import VAE, VAEConfig

    theirs = VAE(VAEConfig((1, 28, 28), latent_dim=20, reconstruction_loss="bce")).eval().requires_grad_(False)
    first, last = (part for part in model.encoder.modules() if isinstance(part, nn.Linear))
    theirs.encoder.layers[0][0], theirs.encoder.embedding, theirs.encoder.log_var = first, *halves(last)
    hidden, output = (part for part in model.decoder.modules() if isinstance(part, nn.Linear))
    theirs.decoder.layers[0][0], theirs.decoder.layers[1][0] = hidden, output
    return theirs


def halves(layer: nn.Linear) -> list[nn.Linear]:
    """Two layers, of the first and of the second half of the outputs."""
    parts = [nn.Linear(layer.in_features, layer.out_features // 2) for _ in range(2)]
    for part, weight, bias in zip(parts, layer.weight.chunk(2), layer.bias.chunk(2), strict=True):
        part.weight.data, part.bias.data = weight, bias
    return parts


@torch.inference_mode()
def bare_bound(encoder: nn.Module, decoder: nn.Module, x: Tensor, num_samples: int, chunk: int = 16) -> Tensor:
    """log mean over samples of p(x, z) / q(z|x), (B,), `chunk` samples at a time."""
    mean, logvar = encoder(x).chunk(2, 1)
    weights = []
    for _ in range(num_samples // chunk):
        noise = torch.randn(chunk, *mean.shape)
        z = mean + noise * torch.exp(logvar / 2)
        logits = decoder(z.flatten(0, 1)).unflatten(0, (chunk, len(x)))
        nats = binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").flatten(2).sum(2)
        weights.append(0.5 * (noise.square() + logvar - z.square()).sum(2) - nats)  # log p(z) - log q(z|x) + log p(x|z)
    return torch.cat(weights).logsumexp(0) - math.log(num_samples)


SIDES = {each.__name__: each for each in (bare, usual, pythae, bare_validation, bound)}

# --- rows -------------------------------------------------------------------------------------------------


def length(epochs: int, steps: int | None) -> list[str]:
    """Overrides: so many epochs, of so many steps."""
    return [f"trainer.max_epochs={epochs}", *([f"trainer.limit_train_batches={steps}"] if steps else [])]


def training(dynamic: bool, threads: int, repeats: int, quick: bool) -> list[Row]:
    """784-400-20 on MNIST beside a bare loop, the usual Lightning run and pythae."""
    epochs, steps = (2, 60) if quick else (3, None)
    overrides = ["model=mlp", "data=mnist", f"data.binarize={'dynamic' if dynamic else 'none'}", "trainer=cpu",
                 "model/likelihood=bernoulli", NO_PICTURES, *length(epochs, steps)]  # fmt: skip
    others = {"bare": "bare loop", "usual": "Lightning + DataLoader"}
    others |= {"pythae": "pythae"} if importlib.util.find_spec("pythae") else {}
    options = {"dynamic": dynamic, "epochs": epochs, "steps": steps}
    mine, *theirs = in_turn(repeats, partial(trained_speed, overrides, threads),
                            *(partial(side, name, threads, **options) for name in others))  # fmt: skip
    what = f"mlp, {'dynamic' if dynamic else 'grey'} MNIST, threads: {threads}"
    return [compared(what, mine, beside, rates) for beside, rates in zip(others.values(), theirs, strict=True)]


def conv(pokemon: bool, repeats: int, quick: bool) -> list[Row]:
    """model=conv beside a bare loop over its networks in contiguous layout."""
    epochs, steps = 3, (3 if quick else 12) if pokemon else (10 if quick else 100)
    data = PLAIN_POKEMON if pokemon else ["data=mnist"]
    overrides = ["model=conv", *data, "trainer=cpu", NO_PICTURES, *length(epochs, steps)]
    with tempfile.TemporaryDirectory() as folder:
        trained([*overrides, *length(1, 1)], run_dir=f"{folder}/run")  # its networks, and a cache of the pictures
        options = {
            "epochs": epochs,
            "dynamic": not pokemon,
            "steps": steps,
            "pokemon": pokemon,
            "run_dir": f"{folder}/run",
        }
        mine, loop = in_turn(repeats, partial(trained_speed, overrides), partial(side, "bare", **options))
    return [compared(f"conv, {'Pokemon 128x128' if pokemon else 'MNIST'}", mine, "bare loop", loop)]


def validation(repeats: int, quick: bool) -> list[Row]:
    """The sums of the ELBO over a split, beside a bare loop."""
    passes, num_images = 3 if quick else 20, 10_000
    overrides = ["model=mlp", "data=mnist", f"data.val_size={num_images}", "data.eval_batch_size=500", "trainer=cpu",
                 NO_PICTURES, *length(passes, 1)]  # fmt: skip

    def rate() -> float:
        return passes * num_images / float(trained(overrides)["seconds_in"]["validation"])

    mine, loop = in_turn(repeats, rate, partial(side, "bare_validation", passes=passes, num_images=num_images))
    return [compared("validation, mlp", mine, "bare loop, inference_mode", loop)]


def importance(repeats: int, quick: bool) -> list[Row]:
    """The importance-weighted bound, K=64, beside a bare loop; K=5000 beside one image at a time, and pythae."""
    few: dict[str, Any] = {"passes": 2 if quick else 5, "num_images": 100 if quick else 500, "num_samples": 64}
    many: dict[str, Any] = {"passes": 1, "num_images": 2 if quick else 40, "num_samples": 5000}
    others = {"one image": "one image's K at a time"}
    others |= {"pythae": "pythae's get_nll"} if importlib.util.find_spec("pythae") else {}
    with tempfile.TemporaryDirectory() as folder:
        trained(["model=mlp", "data=mnist", "trainer=cpu", NO_PICTURES, *length(1, 1)], run_dir=f"{folder}/run")
        way = partial(side, "bound", run_dir=f"{folder}/run")
        mine, loop = in_turn(repeats, *(partial(way, way=each, **few) for each in ("ours", "bare")))
        ours, *theirs = in_turn(repeats, *(partial(way, way=each, **many) for each in ("ours", *others)))
    what = "importance-weighted bound, mlp, K=5000"
    rows = [compared(what, ours, beside, rates) for beside, rates in zip(others.values(), theirs, strict=True)]
    return [compared("importance-weighted bound, mlp, K=64", mine, "bare loop, inference_mode", loop), *rows]


def first_step(repeats: int, quick: bool) -> list[Row]:
    """The default command, beside the imports that it cannot do without."""
    imports = [sys.executable, "-c", "import torch, lightning"]
    mine, theirs = in_turn(repeats, first_step_seconds, lambda: run(imports, ROOT).seconds)
    return [compared("command to first step, digits", mine, "import torch, lightning", theirs, "s")]


HYDRA_APP = """import hydra
@hydra.main(config_path=".", config_name="app", version_base="1.3")
def main(config): print(config)
main()
"""


def help_text(repeats: int, quick: bool) -> list[Row]:
    """--help, beside that of a bare Hydra app."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "app.yaml").write_text("lr: 0.001\nmodel: {width: 32, depth: 2}\n")
        (Path(folder) / "app.py").write_text(HYDRA_APP)
        mine, theirs = in_turn(repeats, lambda: run([*TRAIN, "--help"], folder).seconds,
                               lambda: run([sys.executable, "app.py", "--help"], folder).seconds)  # fmt: skip
    return [compared("--help", mine, "bare Hydra app", theirs, "s")]


def write_pictures(folder: Path, count: int) -> None:
    """PNG files of 128x128 with shades and grain, so that reading them costs what reading pictures costs."""
    grain = torch.randint(0, 12, (3, 128, 128), dtype=torch.uint8)
    for i in range(count):
        shades = interpolate(torch.randint(0, 240, (1, 3, 5, 5)).float(), (128, 128), mode="bilinear")[0]
        write_png(shades.byte() + grain.roll(i, 1), str(folder / f"{i:05d}.png"))


def pictures(repeats: int, quick: bool) -> list[Row]:
    """A folder of pictures: the first start decodes it, the second finds it decoded; to the first step each."""
    count = 300 if quick else 5000
    with tempfile.TemporaryDirectory() as temporary:
        (folder := Path(temporary) / "pictures").mkdir()
        write_pictures(folder, count)
        options = ["data=folder", f"data.folder={folder}", "data.image_size=128"]
        caches = [[*options, f"data.cache_dir={temporary}/cache{repeat}"] for repeat in range(repeats)]
        first, second = zip(*([first_step_seconds(each) for _ in range(2)] for each in caches), strict=True)
    return [compared(f"second start, {count:,} pictures 128x128", second, "first start", first, "s")]


def memory(repeats: int, quick: bool) -> list[Row]:
    """The most resident memory in an epoch of MNIST, beside the bare loop."""
    command = [*TRAIN, "model=mlp", "data=mnist", "trainer=cpu", "trainer.max_epochs=1"]
    loop = side_command("bare", epochs=1, dynamic=True)
    with tempfile.TemporaryDirectory() as folder:
        mine, theirs = in_turn(repeats, lambda: run(command, folder).mebibytes, lambda: run(loop, folder).mebibytes)
    return [compared("peak memory, MNIST", mine, "bare loop", theirs, "MiB")]


def share(repeats: int, quick: bool) -> list[Row]:
    """What pictures and checkpoints take of the epochs of the default run on MNIST."""
    spent = [trained(["data=mnist", *(length(5, 60) if quick else [])])["seconds_in"] for _ in range(repeats)]
    taken = [each["pictures"] + each["checkpoints"] for each in spent]
    epochs = [each["training"] + each["validation"] + some for each, some in zip(spent, taken, strict=True)]
    return [compared("pictures and checkpoints, data=mnist", taken, "the epochs", epochs, "s")]


ROWS: dict[str, Callable[[int, bool], list[Row]]] = {
    "grey-1": partial(training, False, 1), "grey-2": partial(training, False, 2),
    "dynamic-1": partial(training, True, 1), "dynamic-2": partial(training, True, 2),
    "conv": partial(conv, False), "pokemon": partial(conv, True), "validation": validation, "importance": importance,
    "first-step": first_step, "help": help_text, "folder": pictures, "memory": memory, "share": share,
}  # fmt: skip
WITHOUT_MNIST = ("pokemon", "first-step", "help", "folder")


def missing(name: str) -> str:
    """Why a row has to be left out; empty if it has not."""
    if name not in WITHOUT_MNIST and not (DATA / "MNIST" / "raw" / "train-images-idx3-ubyte").exists():
        return "left out, since VAE_LAB_DATA holds no MNIST, unpacked"
    if name == "pokemon" and not any((DATA / "pokemon").glob("*.png")):
        return "left out, since VAE_LAB_DATA holds no pokemon"
    return ""


# --- the command ------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits, and all that stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cells(row: Row) -> list[str]:
    """What the table shows of a row."""
    return [row.what, number(row.ours), row.beside, number(row.theirs), f"{row.ratio:.2f}", row.unit]


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; exit code 2 for a row that there is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}; default: all of them")
    parser.add_argument("--quick", action="store_true", help="one repeat of fewer steps")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of each side (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured, and on what, there")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if wrong := [name for name in options.rows if name not in ROWS]:
        parser.error(f"no row {', '.join(wrong)}: expected {', '.join(ROWS)}")
    if options.json and not options.json.resolve().parent.is_dir():  # before an hour of measuring
        parser.error(f"{options.json}: there is no folder {options.json.resolve().parent}")
    return options


def measured(names: Sequence[str], repeats: int, quick: bool) -> tuple[list[Row], list[str], bool]:
    """Rows, notes, and whether a row failed; that takes no other with it."""
    rows, notes, failed = list[Row](), list[str](), False
    for name in names:
        if reason := missing(name):
            notes.append(f"{name}: {reason}")
            continue
        try:
            for row in ROWS[name](repeats, quick):
                sys.stderr.write(f"{name}: {' | '.join(cells(row))}\n")
                rows.append(row)
        except ProcessError as error:
            failed = True
            notes.append(f"{name}: failed: {error}")
    return rows, notes, failed


def main(argv: Sequence[str]) -> int:
    """Measure the rows asked for; 1 where one could not be measured."""
    options = parsed(argv)
    if options.side:
        print(SIDES[options.side[0]](**json.loads(options.side[1])))
        return 0
    from rich.console import Console
    from rich.table import Table

    repeats = 1 if options.quick else options.repeats
    rows, notes, failed = measured(options.rows or list(ROWS), repeats, options.quick)
    table = Table("what", "vae_lab", "beside", "there", "ratio", "unit")
    for row in rows:
        table.add_row(*cells(row))
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(*([table] if rows else []))
    print("\n".join(notes))
    if options.json:
        versions = {name: metadata.version(name) for name in ("torch", "lightning", "torchvision", "hydra-core")}
        machine = {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        }
        content = {"date": time.strftime("%F %T"), "quick": options.quick, "machine": machine, "versions": versions,
                   "rows": [row._asdict() for row in rows], "notes": notes}  # fmt: skip
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
