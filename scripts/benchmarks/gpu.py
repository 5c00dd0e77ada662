"""Training on a CUDA device, replayed as a CUDA graph, beside a bare loop that is replayed as one."""

from __future__ import annotations

from typing import Any

from scripts.benchmarks.parts import IMAGES_PER_S, NOISE, WITHOUT_MNIST_KEYS, Found, ours
from scripts.benchmarks.rows import Note, Row, Wanted, compared
from scripts.benchmarks.workers import in_turn, once, side

# Dense bfloat16 arithmetic, FLOP/s, by a word of the device's name; the makers' data sheets.
PEAKS = {"H100 80GB HBM3": 989e12, "H100 SXM": 989e12, "H200": 989e12, "A100": 312e12}
GPU = ("trainer=gpu", "trainer.cuda_graphs=true")
COLOUR = ("model/likelihood=gaussian_optimal", "data.binarize=none", "+data.channels=3", "+data.image_size=128")
WIDE = ("model.encoder.width=128", "model.encoder.max_width=512", "model.decoder.width=128")
WIDER = (*WIDE, "model.decoder.max_width=512")


def gpu(quick: bool) -> Found:
    """Small and large batches of an MLP, a conv net, and how near a wide one comes to the device's arithmetic."""
    device = once(side("availability:torch_here"))["device"]
    if device is None:
        yield Note("needs a CUDA device; torch sees none here")
        return
    for batch in (128, 1024):
        yield _beside_graph(f"mlp, batch {batch}, {device}", mlp(batch), 20, quick)
    yield _beside_graph(f"conv, 128x128, batch 64, {device}", conv(64), 5, quick)
    yield _share_of_peak(device, quick)


def mlp(batch: int) -> list[str]:
    """784-400-z20 on as many images as MNIST has, generated."""
    return ["model=mlp", *NOISE, *WITHOUT_MNIST_KEYS, "+data.num_images=55500", f"data.batch_size={batch}"]


def conv(batch: int, *wider: str) -> list[str]:
    """A conv net on generated colour images of 128x128."""
    options = [*NOISE, *WITHOUT_MNIST_KEYS, *COLOUR, "+data.num_images=4500", f"data.batch_size={batch}"]
    return ["model=conv", *options, *wider]


def measured(overrides: list[str], epochs: int) -> Any:
    """Our side, on the device, without the pictures that would only wait in between."""
    return ours(*overrides, *GPU, "callbacks.images=null", epochs=epochs)


def _beside_graph(what: str, overrides: list[str], epochs: int, quick: bool) -> Row:
    sides = [measured(overrides, epochs), side("graphs:training", overrides=overrides, epochs=epochs)]
    mine, bare = in_turn(sides, 2 if quick else 7)
    return compared(what, mine, "bare loop in a CUDA graph", bare, Wanted("at least", 0.9), IMAGES_PER_S)


def _share_of_peak(device: str, quick: bool) -> Row | Note:
    peak = peak_of(device)
    if peak is None:
        return Note(f"the share of the arithmetic peak is left out: that of {device} is not known here")
    overrides = conv(128, *WIDER)
    flops = float(once(side("graphs:flops_per_image", overrides=overrides)))
    (rates,) = in_turn([measured(overrides, 1)], 2 if quick else 5)
    arithmetic = [rate * flops / 1e12 for rate in rates]
    what, beside = f"wide conv, 128x128, batch 128, {device}", "its dense bf16 peak"
    return compared(what, arithmetic, beside, [peak / 1e12] * len(arithmetic), Wanted("shown"), "TFLOP/s")


def peak_of(device: str) -> float | None:
    """FLOP/s of a device by its name; None where it is not known."""
    if "PCIe" in device and "A100" not in device:
        return None  # slower than the others of its name
    if "NVL" in device:
        return None
    return next((peak for name, peak in PEAKS.items() if name in device), None)
