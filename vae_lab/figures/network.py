"""Diagram of a network: layers as blocks, from the image through z and back to an image."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vae_lab.figures.canvas import BLUE, GREEN, INK, MUTED, ORANGE, add_axes, blank_figure, fit_axes, styled
from vae_lab.models.vae import VAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"input": MUTED, "encoder": BLUE, "z": ORANGE, "decoder": GREEN}
LONG_NAME = 11
UNIT = 26  # pixels of block height per doubling of the map
SPACE = 92  # pixels between the left edges of adjacent blocks; more for wide blocks


class TracedLayer(NamedTuple):
    """One layer of a traced network."""

    name: str
    shape: tuple[int, ...]  # of its output, without the batch dimension
    part: str  # "input", "encoder", "z", "decoder"


class ShapeAdapter(nn.Module):
    """Encoder output truncated or padded with zeros to the decoder's input shape: z without a Distribution."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape  # with a batch of 1

    def forward(self, parameters: Tensor) -> Tensor:
        """(1, num_params, *map) to `shape`; the values have no meaning."""
        flat = parameters.flatten()
        missing = max(0, math.prod(self.shape) - flat.numel())
        return nn.functional.pad(flat, (0, missing))[: math.prod(self.shape)].reshape(self.shape)


def autoencoder(model: VAE, example: Tensor, y: Tensor | None = None) -> tuple[nn.Module, Tensor]:
    """Encoder, z and decoder as one traceable module from tensor to tensor, and its input.

    Without the computations of the posterior family; labels are constants. example: (1, C, H, W); y: its label (1,).
    """
    inputs: list[Tensor] = []
    networks = model.encoder, model.decoder
    hooks = [network.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for network in networks]
    reconstruct_with_hooks(model, example, y, hooks)
    seen, taken = inputs
    parts = {"encoder": model.encoder, "z": ShapeAdapter(tuple(taken.shape)), "decoder": model.decoder}
    return nn.Sequential(OrderedDict(parts)), seen


def trace_layers(model: VAE, example: Tensor, y: Tensor | None = None) -> list[TracedLayer]:
    """Layers of encoder, z and decoder, in execution order for `example` (1, C, H, W) with label y (1,).

    Layers that keep the shape of the previous one (activations, normalisations) are omitted.
    """
    layers = [TracedLayer("input", tuple(example.shape[1:]), "input")]

    def note(part: str, layer: nn.Module, output: Tensor) -> None:
        shape = tuple(output.shape[1:])
        if shape != layers[-1].shape or part != layers[-1].part:
            layers.append(TracedLayer(type(layer).__name__, shape, part))

    hooks = [
        layer.register_forward_hook(lambda layer, _, output, part=part: note(part, layer, output))
        for part, network in (("encoder", model.encoder), ("decoder", model.decoder))
        for layer in network.modules()
        if not any(layer.children())
    ]
    z = TracedLayer("z", model.latent_shape, "z")
    hooks.append(model.decoder.register_forward_pre_hook(lambda *_: layers.append(z)))
    reconstruct_with_hooks(model, example, y, hooks)
    return layers


def reconstruct_with_hooks(model: VAE, example: Tensor, y: Tensor | None, hooks: Sequence[RemovableHandle]) -> None:
    """Reconstruct an image to run the hooks, then remove them."""
    try:
        with torch.no_grad():
            model.reconstruct(example, y)
    finally:
        for hook in hooks:
            hook.remove()


class Block(NamedTuple):
    """A layer and its rectangle, in pixels."""

    layer: TracedLayer
    left: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """Start of the arrow to the next block."""
        return self.left + self.width


@styled
def network_drawing(layers: Sequence[TracedLayer], *, title: str = "The network") -> Figure:
    """Blocks from input to output; height grows with the log2 of the map size, width with the log2 of the channels."""
    blocks = place_blocks(layers)
    end = blocks[-1].right + SPACE / 2
    half = max(block.height for block in blocks) / 2
    axes = add_axes(blank_figure(), 0, 0, round(end), round(2 * half))
    axes.set(xlim=(0, end), ylim=(-half, half))
    axes.set_axis_off()
    axes.set_title(title, loc="left", pad=30)
    for block in blocks:
        _draw_block(axes, block, -half)
    for before, after in pairwise(blocks):
        _draw_arrow(axes, before.right, after.left)
    for part in ("encoder", "z", "decoder"):
        _name_part(axes, part, [block for block in blocks if block.layer.part == part], half)
    return fit_axes(axes)


def place_blocks(layers: Sequence[TracedLayer]) -> list[Block]:
    """One block per layer, from left to right, each centred in a slot wide enough for its name."""
    blocks, start = [], 0.0
    for layer in layers:
        width, height = _block_size(layer.shape)
        slot = max(SPACE, width + 24)
        blocks.append(Block(layer, start + (slot - width) / 2, width, height))
        start += slot
    return blocks


def _block_size(shape: tuple[int, ...]) -> tuple[float, float]:
    """Width and height in pixels; a vector is a bar."""
    if len(shape) == 1:
        return 12, UNIT * (0.5 + 0.5 * math.log2(1 + shape[0]))
    channels, height = shape[0], shape[-2]
    return 6 + 5 * math.log2(1 + channels), UNIT * (0.5 + math.log2(1 + height))


def _draw_block(axes: Axes, block: Block, bottom: float) -> None:
    """Draw the rectangle, and its shape and name below all blocks."""
    from matplotlib.patches import Rectangle

    layer, corner = block.layer, (block.left, -block.height / 2)
    style: dict[str, Any] = {
        "facecolor": COLOURS[layer.part],
        "edgecolor": INK,
        "linewidth": 0.6,
        "clip_on": False,
    }
    axes.add_patch(Rectangle(corner, block.width, block.height, **style))
    shape = "\N{MULTIPLICATION SIGN}".join(str(size) for size in layer.shape)
    # "ConvTranspose2d" is wider than its slot: break a long name at its capitals
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "\n", layer.name) if len(layer.name) > LONG_NAME else layer.name
    where: dict[str, Any] = {"ha": "center", "va": "top", "textcoords": "offset pixels", "size": 7}
    axes.annotate(f"{shape}\n{name}", (block.left + block.width / 2, bottom), (0, -8), **where)


def _draw_arrow(axes: Axes, start: float, end: float) -> None:
    style = {"arrowstyle": "-|>,head_width=0.14,head_length=0.28", "color": MUTED, "linewidth": 0.7}
    axes.annotate("", (end - 1, 0), (start + 1, 0), arrowprops={**style, "shrinkA": 0, "shrinkB": 0})


def _name_part(axes: Axes, part: str, blocks: Sequence[Block], top: float) -> None:
    """Write the part's name centred above its blocks."""
    if not blocks:
        return
    middle = (blocks[0].left + blocks[-1].right) / 2
    style: dict[str, Any] = {"ha": "center", "color": COLOURS[part], "weight": "bold"}
    axes.annotate(part, (middle, top), (0, 8), textcoords="offset pixels", **style)
