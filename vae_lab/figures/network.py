"""A drawing of a network: its layers as blocks, from the image through z and back to an image."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from vae_lab.figures.canvas import BLUE, GREEN, INK, MUTED, ORANGE, add_axes, blank_figure, fit_axes, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"input": MUTED, "encoder": BLUE, "z": ORANGE, "decoder": GREEN}
LONG_NAME = 11
UNIT = 26  # pixels of height for each doubling of a map
SPACE = 92  # pixels from one block's left edge to the next, or as much as a wide block needs


class Layer(NamedTuple):
    """One layer of a traced network."""

    name: str
    shape: tuple[int, ...]  # of its output, without the batch
    part: str  # "input", "encoder", "z", "decoder"


class PosteriorMean(nn.Module):
    """The first D of the posterior's parameters, (B, num_params) to (B, D): stands for sampling z in a trace."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim

    def forward(self, parameters: Tensor) -> Tensor:
        """The mean, as long as the family puts it first; only shapes matter here."""
        return parameters[..., : self.latent_dim]


def autoencoder(encoder: nn.Module, decoder: nn.Module, latent_dim: int) -> nn.Sequential:
    """Encoder, z, decoder as one module from tensor to tensor, which hooks and tracers can follow."""
    parts = {"encoder": encoder, "z": PosteriorMean(latent_dim), "decoder": decoder}
    # a compiled module runs none of its children's hooks and cannot be traced: take what it wraps
    return nn.Sequential(
        OrderedDict((name, getattr(part, "_orig_mod", part)) for name, part in parts.items())
    )


def trace_layers(module: nn.Module, example: Tensor) -> list[Layer]:
    """The layers of `autoencoder(...)` in the order in which `example` (B, C, H, W) passes them.

    A layer that keeps the shape of the one before it (an activation, a normalisation) is left out.
    """
    layers = [Layer("input", tuple(example.shape[1:]), "input")]

    def note(name: str, layer: nn.Module, output: Tensor) -> None:
        part, shape = name.split(".")[0], tuple(output.shape[1:])
        if shape != layers[-1].shape or part != layers[-1].part:
            layers.append(Layer("z" if part == "z" else type(layer).__name__, shape, part))

    leaves = [(name, layer) for name, layer in module.named_modules() if not any(layer.children())]
    hooks = [
        layer.register_forward_hook(lambda layer, _, output, name=name: note(name, layer, output))
        for name, layer in leaves
    ]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    return layers


@styled
def network_drawing(layers: Sequence[Layer], *, title: str = "The network") -> Figure:
    """Blocks from input to output: the height of one follows its map, its width the channels (both by doublings)."""
    sizes = [_block_size(layer.shape) for layer in layers]
    tallest = max(height for _, height in sizes)
    lefts, total = _spread([width for width, _ in sizes])
    axes = add_axes(blank_figure(), 0, 0, total, round(tallest))
    axes.set(xlim=(0, total), ylim=(-tallest / 2, tallest / 2))
    axes.set_axis_off()
    axes.set_title(title, loc="left", pad=30)
    for index, (layer, (width, height), left) in enumerate(zip(layers, sizes, lefts, strict=True)):
        _draw_block(axes, layer, left, width, height, tallest)
        if index:
            _draw_arrow(axes, lefts[index - 1] + sizes[index - 1][0], left)
    _name_parts(axes, layers, lefts, sizes, tallest)
    return fit_axes(axes)


def _block_size(shape: tuple[int, ...]) -> tuple[float, float]:
    """Width and height in pixels; a vector is a bar."""
    if len(shape) == 1:
        return 12, UNIT * (0.5 + 0.5 * math.log2(1 + shape[0]))
    channels, height = shape[0], shape[-2]
    return 6 + 5 * math.log2(1 + channels), UNIT * (0.5 + math.log2(1 + height))


def _spread(widths: Sequence[float]) -> tuple[list[float], int]:
    """The left edge of each block, centred in a slot of its own, and the width of all slots."""
    slots = [max(SPACE, width + 24) for width in widths]
    starts = [sum(slots[:index]) for index in range(len(slots))]
    lefts = [start + (slot - width) / 2 for start, slot, width in zip(starts, slots, widths, strict=True)]
    return lefts, round(sum(slots))


def _draw_block(axes: Axes, layer: Layer, left: float, width: float, height: float, tallest: float) -> None:
    from matplotlib.patches import Rectangle

    colour = COLOURS.get(layer.part, MUTED)
    axes.add_patch(
        Rectangle(
            (left, -height / 2), width, height, facecolor=colour, edgecolor=INK, linewidth=0.6, clip_on=False
        )
    )
    shape = "\N{MULTIPLICATION SIGN}".join(str(size) for size in layer.shape)
    # "ConvTranspose2d" is wider than its slot: break a long name at its capitals
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "\n", layer.name) if len(layer.name) > LONG_NAME else layer.name
    text = f"{shape}\n{name}"
    centre = left + width / 2
    axes.annotate(
        text, (centre, -tallest / 2), (0, -8), ha="center", va="top", textcoords="offset pixels", size=7
    )


def _draw_arrow(axes: Axes, start: float, end: float) -> None:
    style = {"arrowstyle": "-|>,head_width=0.14,head_length=0.28", "color": MUTED, "linewidth": 0.7}
    axes.annotate("", (end - 1, 0), (start + 1, 0), arrowprops={**style, "shrinkA": 0, "shrinkB": 0})


def _name_parts(
    axes: Axes,
    layers: Sequence[Layer],
    lefts: Sequence[float],
    sizes: Sequence[tuple[float, float]],
    tallest: float,
) -> None:
    """ "encoder" and "decoder" above the middle of their blocks."""
    for part in ("encoder", "z", "decoder"):
        own = [index for index, layer in enumerate(layers) if layer.part == part]
        if own:
            middle = (lefts[own[0]] + lefts[own[-1]] + sizes[own[-1]][0]) / 2
            axes.annotate(
                part,
                (middle, tallest / 2),
                (0, 8),
                ha="center",
                textcoords="offset pixels",
                color=COLOURS[part],
                weight="bold",
            )
