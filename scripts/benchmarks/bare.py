"""The other side: loops a careful user writes in plain PyTorch, float32, tensors in memory, eager, no logging."""

from __future__ import annotations

import gzip
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from scripts.benchmarks.workers import Turn, data_root

LogPx = Callable[[Tensor, Tensor], Tensor]  # what a decoder gives and x, to the sum of log p(x|z) in nats, ()
MNIST_TRAIN, MNIST_VALIDATION = 55_000, 5_000


class Network(NamedTuple):
    """Both halves, and the density of what the decoder gives."""

    encoder: nn.Module  # (B, C, H, W) to (B, 2 D): means, then log variances
    decoder: nn.Module  # (B, D) to (B, C, H, W)
    log_px: LogPx

    def parameters(self) -> list[nn.Parameter]:
        """Of both."""
        return [*self.encoder.parameters(), *self.decoder.parameters()]

    def to(self, device: str) -> Network:
        """On another device."""
        return self._replace(encoder=self.encoder.to(device), decoder=self.decoder.to(device))


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """Minus the cross-entropy, summed."""
    return -binary_cross_entropy_with_logits(logits, x, reduction="sum")


def optimal_gaussian(logits: Tensor, x: Tensor) -> Tensor:
    """A Gaussian whose variance is the batch's mean squared error, a constant to the gradient, summed."""
    squares = (logits.sigmoid() - x).square().sum()
    variance = squares.detach() / x.numel()
    return -0.5 * (squares / variance + x.numel() * (variance.log() + math.log(2 * math.pi)))


def perceptrons() -> Network:
    """784-400-z20, as model=mlp."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
    decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Unflatten(1, (1, 28, 28)))
    return Network(encoder, decoder, bernoulli)


def network_of(overrides: Sequence[str], shape: Sequence[int]) -> Network:
    """The encoder and decoder that a config describes, in torch's own layers and in contiguous layout."""
    from hydra.utils import instantiate

    from scripts.benchmarks.configs import composed

    config = composed(overrides)
    dim = config.model.latent_dim
    encoder = instantiate(config.model.encoder, _convert_="all")(tuple(shape), 2 * dim)
    decoder = instantiate(config.model.decoder, _convert_="all")(dim, tuple(shape))
    log_px = bernoulli if "Bernoulli" in config.model.likelihood._target_ else optimal_gaussian
    return Network(as_torch(encoder), as_torch(decoder), log_px)


def as_torch(network: nn.Module) -> nn.Module:
    """The same network without what vae_lab makes faster in it: each layer the torch.nn class it derives from."""
    for module in network.modules():
        base = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn"))
        if base is not nn.Module:
            module.__class__ = base
    return network.to(memory_format=torch.contiguous_format)


def mnist_images(part: Literal["train", "validation"] = "train") -> Tensor:
    """Float images (N, 1, 28, 28) in [0, 1], read without vae_lab."""
    (path, *_) = sorted((data_root() / "MNIST" / "raw").glob("train-images-idx3-ubyte*"))
    pixels = torch.frombuffer(_content(path), dtype=torch.uint8, offset=16).view(-1, 1, 28, 28)
    rows = slice(0, MNIST_TRAIN) if part == "train" else slice(MNIST_TRAIN, MNIST_TRAIN + MNIST_VALIDATION)
    return pixels[rows].float().div_(255)


def _content(path: Path) -> bytearray:
    """Held once: the peak of memory is measured too."""
    if path.suffix == ".gz":
        return bytearray(gzip.decompress(path.read_bytes()))
    content = bytearray(path.stat().st_size)
    with path.open("rb") as file:
        file.readinto(content)
    return content


def images_of(overrides: Sequence[str]) -> tuple[Tensor, int, bool]:
    """A config's training images as floats in [0, 1], its batch size, and whether it binarises at every step."""
    from hydra.utils import instantiate

    from scripts.benchmarks.configs import composed

    data = instantiate(composed(overrides).data, _convert_="all")
    images = data.load()
    pixels = images.pixels[images.splits["train"]].float().div_(255)
    return pixels, data.batch_size, data.preprocess.binarize == "dynamic"


def binarized(grey: Tensor) -> Tensor:
    """Each pixel on with its grey value as probability."""
    return (torch.rand_like(grey) < grey).float()


def terms(network: Network, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x|z) of one sample and KL(q || p), summed over the batch."""
    mean, logvar = network.encoder(x).chunk(2, 1)
    z = mean + torch.randn_like(mean) * torch.exp(logvar / 2)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
    return network.log_px(network.decoder(z), x), kl


class Loop:
    """A training loop with fused Adam; a call is an epoch, or so many steps, and gives images per second."""

    def __init__(self, network: Network, images: Tensor, batch: int, binarize: bool, steps: int | None = None) -> None:
        self.network, self.images, self.batch, self.binarize = network, images, batch, binarize
        self.most = len(images) if steps is None else min(len(images), steps * batch)
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)

    def __call__(self) -> float:
        """Images per second."""
        start = time.perf_counter()
        for rows in torch.randperm(len(self.images))[: self.most].split(self.batch):
            self.step(self.images[rows])
        return self.most / (time.perf_counter() - start)

    def step(self, grey: Tensor) -> None:
        """One batch."""
        log_px, kl = terms(self.network, binarized(grey) if self.binarize else grey)
        self.optimizer.zero_grad()
        ((kl - log_px) / len(grey)).backward()
        self.optimizer.step()


def forever(turn: Turn, repeat: Callable[[], float]) -> None:
    """Say that it is set up, then what each repeat gave."""
    turn()
    while True:
        turn(repeat())


def mlp(turn: Turn, steps: int | None = None) -> None:
    """Training of 784-400-z20 on MNIST, batch 128."""
    forever(turn, Loop(perceptrons(), mnist_images(), 128, binarize=True, steps=steps))


def mlp_epoch(turn: Turn) -> None:
    """The same for one epoch, for what it takes in memory."""
    turn(Loop(perceptrons(), mnist_images(), 128, binarize=True)())


def configured(turn: Turn, overrides: Sequence[str], steps: int) -> None:
    """Training of the network of a config on its images."""
    images, batch, binarize = images_of(overrides)
    forever(turn, Loop(network_of(overrides, images.shape[1:]), images, batch, binarize, steps))


def validation(turn: Turn, num_images: int, batch: int, passes: int) -> None:
    """The sums of the ELBO, log p(x|z) and the KL over so many images, binarised before."""
    network, repeats = perceptrons(), math.ceil(num_images / MNIST_VALIDATION)
    images = binarized(mnist_images("validation").repeat(repeats, 1, 1, 1)[:num_images])

    def rate() -> float:
        start = time.perf_counter()
        for _ in range(passes):
            elbo_sums(network, images.split(batch)).tolist()
        return passes * num_images / (time.perf_counter() - start)

    forever(turn, rate)


@torch.inference_mode()
def elbo_sums(network: Network, batches: Iterable[Tensor]) -> Tensor:
    """Of the ELBO, log p(x|z) and the KL, (3,)."""
    sums = torch.zeros(3)
    for x in batches:
        log_px, kl = terms(network, x)
        sums += torch.stack((log_px - kl, log_px, kl))
    return sums


def importance(turn: Turn, num_images: int, num_samples: int, chunk: int) -> None:
    """The importance-weighted bound of 784-400-z20 on MNIST, `chunk` samples of each image at a time."""
    network, images = perceptrons(), binarized(mnist_images("validation")[:num_images])

    def rate() -> float:
        start = time.perf_counter()
        importance_bound(network, images, num_samples, chunk)
        return len(images) / (time.perf_counter() - start)

    forever(turn, rate)


@torch.inference_mode()
def importance_bound(network: Network, x: Tensor, num_samples: int, chunk: int) -> Tensor:
    """log mean over samples of p(x, z) / q(z|x), (B,)."""
    mean, logvar = network.encoder(x).chunk(2, 1)
    scale = torch.exp(logvar / 2)
    weights = [
        log_weights(network, x, mean, scale, min(chunk, num_samples - done)) for done in range(0, num_samples, chunk)
    ]
    return torch.cat(weights).logsumexp(0) - math.log(num_samples)


def log_weights(network: Network, x: Tensor, mean: Tensor, scale: Tensor, num_samples: int) -> Tensor:
    """log p(x|z) + log p(z) - log q(z|x) of so many samples, (S, B)."""
    noise = torch.randn(num_samples, *mean.shape)
    z = mean + noise * scale
    logits = network.decoder(z.flatten(0, 1)).unflatten(0, (num_samples, len(x)))
    log_px = -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").flatten(2).sum(2)
    log_ratio = (0.5 * (z.square() - noise.square()) - scale.log()).sum(2)  # log q - log p
    return log_px - log_ratio
