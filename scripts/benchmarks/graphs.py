"""The other side on a CUDA device: a bare loop whose whole step is one CUDA graph, in the arithmetic of trainer=gpu."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from scripts.benchmarks.bare import Network, binarized, forever, images_of, network_of, terms
from scripts.benchmarks.workers import Turn

WARM_UP = 5  # steps before the capture, so that what is set up once is set up


class GraphLoop:
    """Training replayed: bf16 mixed precision, TF32 for the rest, fused capturable Adam, images on the device.

    Batches that are not whole are left out, for a graph has one size.
    """

    def __init__(self, network: Network, images: Tensor, batch: int, binarize: bool) -> None:
        self.network, self.images, self.binarize = network.to("cuda"), images.to("cuda"), binarize
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3, fused=True, capturable=True)
        self.batch = self.images[:batch].clone()  # where every batch is put before the graph is replayed
        self._warm_up()
        self.graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph):
            self._step()

    def _warm_up(self) -> None:
        """On a stream of its own, as torch.cuda.graph asks."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.optimizer.zero_grad(set_to_none=True)
                self._step()
        torch.cuda.current_stream().wait_stream(stream)

    def _step(self) -> None:
        x = binarized(self.batch) if self.binarize else self.batch
        # No cache of cast weights: what it held would not outlive the capture.
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            params = self.network.encoder(x)
        log_px, kl = self._terms(x, params.float())
        ((kl - log_px) / len(x)).backward()
        self.optimizer.step()

    def _terms(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = params.chunk(2, 1)
        z = mean + torch.randn_like(mean) * torch.exp(logvar / 2)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            decoded = self.network.decoder(z)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
        return self.network.log_px(decoded.float(), x), kl

    def epoch(self) -> int:
        """Every whole batch once; the number of images."""
        rows = torch.randperm(len(self.images), device="cuda")
        whole = [part for part in rows.split(len(self.batch)) if len(part) == len(self.batch)]
        for part in whole:
            torch.index_select(self.images, 0, part, out=self.batch)
            self.graph.replay()
        return len(whole) * len(self.batch)


def training(turn: Turn, overrides: Sequence[str], epochs: int) -> None:
    """Images per second of the network of a config on its images."""
    torch.set_float32_matmul_precision("high")
    images, batch, binarize = images_of(overrides)
    loop = GraphLoop(network_of(overrides, images.shape[1:]), images, batch, binarize)

    def rate() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        done = sum(loop.epoch() for _ in range(epochs))
        torch.cuda.synchronize()
        return done / (time.perf_counter() - start)

    forever(turn, rate)


def flops_per_image(turn: Turn, overrides: Sequence[str]) -> None:
    """Floating-point operations of forward and backward for one image, as torch counts them, on the CPU."""
    from torch.utils.flop_counter import FlopCounterMode

    images, _, _ = images_of([*overrides, "data.num_images=20"])
    network = network_of(overrides, images.shape[1:])
    with FlopCounterMode(display=False) as counter:
        log_px, kl = terms(network, images[:1])
        (kl - log_px).backward()
    turn(counter.get_total_flops())
