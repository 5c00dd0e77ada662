"""Diagram of a network: layers as blocks, from the image through z and back to an image."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from vae_lab.figures.canvas import BLUE, GREEN, INK, MUTED, ORANGE, add_axes, blank_figure, styled
from vae_lab.models.vae import VAE

TIMES = "\N{MULTIPLICATION SIGN}"
COLOURS = {"input": MUTED, "encoder": BLUE, "z": ORANGE, "decoder": GREEN}
LONG_NAME = 11
UNIT = 26  # pixels of block height per doubling of the map
SPACE = 92  # pixels between the centres of adjacent blocks; more for wide blocks


class TracedLayer(NamedTuple):
    """One layer of a traced network."""

    name: str
    shape: tuple[int, ...]  # of its output, without the batch dimension
    part: str  # "input", "encoder", "z", "decoder"


def network_inputs(model: VAE, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Inputs of the encoder, an image x (1, C, H, W), and of the decoder, z = 0; each with the label y (1,), if any."""
    z = torch.zeros(1, *model.latent_shape, device=x.device)
    if model.label_plane is None or model.label_features is None:
        return x, z
    return model.label_plane(x, y), model.label_features(z, y)


class Autoencoder(nn.Module):
    """Encoder and decoder as one module that can be traced: between them a constant z, not the posterior family."""

    def __init__(self, model: VAE, z: Tensor) -> None:
        super().__init__()
        self.encoder, self.decoder, self.z = model.encoder, model.decoder, z

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.decoder(self.z + 0 * self.encoder(x).mean())
        return output


def trace_layers(model: VAE, x: Tensor, y: Tensor | None = None) -> list[TracedLayer]:
    """Layers of encoder, z and decoder, in execution order for an image x (1, C, H, W) with label y (1,).

    Layers that keep the shape of the previous one (activations, normalisations) are omitted.
    """
    layers = [TracedLayer("input", tuple(x.shape[1:]), "input")]
    encoder_input, z = network_inputs(model, x, y)

    def trace_part(part: str, network: nn.Module, features: Tensor) -> None:
        def note(layer: nn.Module, _: object, output: Tensor) -> None:
            shape = tuple(output.shape[1:])
            if shape != layers[-1].shape or part != layers[-1].part:
                layers.append(TracedLayer(type(layer).__name__, shape, part))

        leaves = (layer for layer in network.modules() if not any(layer.children()))
        hooks = [layer.register_forward_hook(note) for layer in leaves]
        try:
            network(features)
        finally:
            for hook in hooks:
                hook.remove()

    trace_part("encoder", model.encoder, encoder_input)
    layers.append(TracedLayer("z", model.latent_shape, "z"))
    trace_part("decoder", model.decoder, z)
    return layers


@styled
def network_drawing(layers: Sequence[TracedLayer], title: str) -> Figure:
    """Blocks from input to output; height grows with the log2 of the map size, width with the log2 of the channels."""
    widths, heights = zip(*(_block_size(layer.shape) for layer in layers), strict=True)
    slots = [max(SPACE, width + 24) for width in widths]  # wide enough for the layer's name
    centres = [end - slot / 2 for end, slot in zip(accumulate(slots), slots, strict=True)]
    colours = [COLOURS[layer.part] for layer in layers]
    half = max(heights) / 2
    figure = blank_figure()
    axes = add_axes(figure, 0, 0, round(sum(slots)), round(2 * half))
    bottoms = [-height / 2 for height in heights]
    axes.bar(centres, heights, widths, bottoms, color=colours, edgecolor=INK, linewidth=0.6, clip_on=False)
    axes.set(xlim=(0, sum(slots)), ylim=(-half, half))
    axes.set_axis_off()
    axes.set_title(title, pad=30)
    for layer, centre in zip(layers, centres, strict=True):
        _name_layer(axes, layer, centre, -half)
    arrow = {"arrowstyle": "-|>,head_width=0.14,head_length=0.28", "color": MUTED, "linewidth": 0.7}
    for k in range(1, len(layers)):
        start, end = centres[k - 1] + widths[k - 1] / 2 + 1, centres[k] - widths[k] / 2 - 1
        axes.annotate("", (end, 0), (start, 0), arrowprops={**arrow, "shrinkA": 0, "shrinkB": 0})
    for part in ("encoder", "z", "decoder"):
        own = [centre for layer, centre in zip(layers, centres, strict=True) if layer.part == part]
        middle = (own[0] + own[-1]) / 2
        style: dict[str, Any] = {"ha": "center", "color": COLOURS[part], "weight": "bold"}
        axes.annotate(part, (middle, half), (0, 8), textcoords="offset pixels", **style)
    return figure


def _block_size(shape: tuple[int, ...]) -> tuple[float, float]:
    """Width and height in pixels; a vector is a bar."""
    if len(shape) == 1:
        return 12, UNIT * (0.5 + 0.5 * math.log2(1 + shape[0]))
    channels, height = shape[0], shape[-2]
    return 6 + 5 * math.log2(1 + channels), UNIT * (0.5 + math.log2(1 + height))


def _name_layer(axes: Axes, layer: TracedLayer, centre: float, bottom: float) -> None:
    """Write the layer's shape and name below all blocks."""
    shape = TIMES.join(map(str, layer.shape))
    # "ConvTranspose2d" is wider than its slot: break a long name at its capitals
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "\n", layer.name) if len(layer.name) > LONG_NAME else layer.name
    style: dict[str, Any] = {"ha": "center", "va": "top", "size": 7}
    axes.annotate(f"{shape}\n{name}", (centre, bottom), (0, -8), textcoords="offset pixels", **style)
