"""Networks of a ladder: features of an image from the bottom up, features of latents from the top down; no probability.

Blocks are bottlenecks as in VDVAE (Child 2021, arXiv:2011.10650), each with one group normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from vae_lab.networks.conditioning import require_y
from vae_lab.networks.conv import group_norm
from vae_lab.networks.ladder_sizes import Resolution, Sides


class LadderSizes(NamedTuple):
    """The sizes that all networks of a ladder share."""

    resolutions: tuple[Resolution, ...]  # from fine to coarse
    blocks: int  # residual blocks behind each stochastic layer, and on the way up as many
    squeeze: int  # channels of a map over those of a 3x3 convolution

    def layer_positions(self) -> Iterator[tuple[int, bool]]:
        """The resolution of each stochastic layer from the top down, and whether it is the last one there."""
        for level, at in reversed([*enumerate(self.resolutions)]):
            for number in range(at.num_layers):
                yield level, number == at.num_layers - 1

    def bottleneck(self, level: int, in_channels: int, out_channels: int, gain: float) -> Bottleneck:
        """A block at a resolution."""
        at = self.resolutions[level]
        return Bottleneck(in_channels, out_channels, max(1, at.channels // self.squeeze), at.sides, gain)

    def residuals(self, level: int, num_layers: int) -> list[nn.Module]:
        """The residual blocks of so many stochastic layers; at least one layer's."""
        channels = self.resolutions[level].channels
        count = self.blocks * max(1, num_layers)
        return [Residual(self.bottleneck(level, channels, channels, self.gain)) for _ in range(count)]

    @property
    def gain(self) -> float:
        """Of what is added to the features, so that its variance does not grow with the depth. arXiv:2011.10650."""
        return 1 / math.sqrt(self.blocks * sum(max(1, at.num_layers) for at in self.resolutions))


class ScaledInitConv2d(nn.Conv2d):
    """A 1x1 convolution; gain: what `initialize_convolutions` multiplies its first weights and biases by."""

    def __init__(self, in_channels: int, out_channels: int, gain: float) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.gain = gain


class Bottleneck(nn.Sequential):
    """A 1x1 convolution to fewer channels, a 3x3 one between those (1x1 on tiny maps), a 1x1 one to `out_channels`."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int, sides: Sides, gain: float) -> None:
        kernel = 3 if min(sides) > 2 else 1  # most of a 3x3 one would lie beyond the edge
        super().__init__(
            group_norm(in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, hidden, 1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2),
            nn.SiLU(),
            ScaledInitConv2d(hidden, out_channels, gain),
        )


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, body: Bottleneck) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same shape."""
        residual: Tensor = self.body(x)
        return x + residual


class BottomUp(nn.Module):
    """An image to its features at each resolution: a strided convolution and residual blocks for each."""

    def __init__(self, in_channels: int, sizes: LadderSizes) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for level, at in enumerate(sizes.resolutions):
            smaller = nn.Conv2d(in_channels, at.channels, *strided(at.stride))
            self.stages.append(nn.Sequential(smaller, *sizes.residuals(level, at.num_layers)))
            in_channels = at.channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) to maps (B, C, h, w), from fine to coarse."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class TopDownStart(nn.Module):
    """What the way down begins with: a learned map, to which each class adds one of its own."""

    def __init__(self, coarsest: Resolution, num_classes: int) -> None:
        super().__init__()
        self.shape = (coarsest.channels, *coarsest.sides)
        self.shared = nn.Parameter(torch.zeros(1, *self.shape))
        self.own = nn.Embedding(num_classes, math.prod(self.shape)) if num_classes else None

    def forward(self, y: Tensor | None) -> Tensor:
        """(1, C, h, w); or of labels y (B,), (B, C, h, w)."""
        return self.shared if self.own is None else self.shared + self.own(require_y(y)).view(-1, *self.shape)


class TopDownBlock(nn.Module):
    """The networks around one stochastic layer.

    level: its resolution. num_params: asked by the posterior. num_prior_params: by the prior; 0 for one that depends on
    nothing above. num_features: of z. starts_at_prior: whether parameters of 0 make the posterior the prior. after:
    from there to the next rung, or to the finest map.
    """

    def __init__(
        self,
        sizes: LadderSizes,
        level: int,
        num_params: int,
        num_prior_params: int,
        num_features: int,
        starts_at_prior: bool,
        after: nn.Module,
    ) -> None:
        super().__init__()
        channels = sizes.resolutions[level].channels
        self.level, self.num_prior_params = level, num_prior_params
        # Zero at first: priors start standard normal, relative posteriors at their prior.
        self.prior = sizes.bottleneck(level, channels, num_prior_params + channels, 0.0) if num_prior_params else None
        self.posterior = sizes.bottleneck(level, 2 * channels, num_params, 0.0 if starts_at_prior else 1.0)
        self.join = ScaledInitConv2d(num_features, channels, sizes.gain)
        self.after = after

    def prior_params(self, h: Tensor) -> tuple[Tensor | None, Tensor]:
        """What is above, h (N, C, h, w), to the prior's parameters (N, num_prior_params, h, w) or None, and a new h."""
        if self.prior is None:
            return None, h
        params, change = self.prior(h).tensor_split((self.num_prior_params,), 1)
        return params, h + change

    def posterior_params(self, h: Tensor, features: Tensor) -> Tensor:
        """What is above and the image's features, (N, C, h, w) each, to the posterior's parameters."""
        params: Tensor = self.posterior(torch.cat((h, features), 1))
        return params

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """What is above, and z (N, num_features, h, w), to what is above the next rung, or the finest map."""
        below: Tensor = self.after(h + self.join(z))
        return below


def path_to_next_block(sizes: LadderSizes, level: int, is_last: bool) -> nn.Sequential:
    """What follows a rung: its residual blocks; of the last at a resolution also the way to the next that has rungs."""
    layers = sizes.residuals(level, 1)
    for at in range(level, 0, -1) if is_last else ():
        here, finer = sizes.resolutions[at], sizes.resolutions[at - 1]
        layers.append(nn.ConvTranspose2d(here.channels, finer.channels, *strided(here.stride)))
        if finer.num_layers:
            break
        layers += sizes.residuals(at - 1, 1)
    return nn.Sequential(*layers)


class LadderHead(nn.Sequential):
    """The finest map to the parameters of a likelihood, at the size of the image."""

    def __init__(self, finest: Resolution, num_channels: int) -> None:
        half = max(1, finest.channels // 2)  # at the size of the image, channels cost most
        super().__init__(
            group_norm(finest.channels),
            nn.SiLU(),
            nn.ConvTranspose2d(finest.channels, half, *strided(finest.stride)),
            nn.SiLU(),
            nn.Conv2d(half, num_channels, 3, padding=1),
        )


def strided(stride: Sides) -> tuple[Sides, Sides, Sides]:
    """Kernel, stride and padding of a convolution that divides the sides of a map, or transposed multiplies them."""
    padding = 1 if max(stride) <= 2 else 0  # larger steps are taken patch by patch
    return (stride[0] + 2 * padding, stride[1] + 2 * padding), stride, (padding, padding)


def initialize_convolutions(network: nn.Module, weight_norm: bool) -> None:
    """Give all convolutions their first weights, normalise these if asked, and make the quiet ones so.

    In this order: a weight of 0 has no direction that a normalisation (arXiv:1602.07868) could keep.
    """
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    with torch.no_grad():
        for layer in convolutions:
            # What joins the way down, latents and coarser maps, keeps torch's own: smaller, hence less noise at first.
            if not isinstance(layer, ScaledInitConv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(cast("nn.Parameter", layer.bias))
            if weight_norm:
                parametrizations.weight_norm(layer, dim=int(isinstance(layer, nn.ConvTranspose2d)))  # of each output
            if isinstance(layer, ScaledInitConv2d):
                size = layer.parametrizations.weight.original0 if weight_norm else layer.weight  # type: ignore[union-attr]
                cast("nn.Parameter", size).mul_(layer.gain)
                cast("nn.Parameter", layer.bias).mul_(layer.gain)
