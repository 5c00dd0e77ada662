"""Networks of a ladder VAE: bottom-up features of an image, top-down features of latents; no probability.

Bottleneck blocks as in VDVAE (Child 2021, arXiv:2011.10650), each with one group normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from vae_lab.networks.conditioning import require_labels
from vae_lab.networks.conv import Residual, group_norm, shuffle, unshuffle
from vae_lab.networks.ladder_sizes import Resolution, Sides


class LadderSizes(NamedTuple):
    """Sizes shared by all networks of a ladder."""

    resolutions: tuple[Resolution, ...]  # from fine to coarse
    blocks: int  # residual blocks after each stochastic layer, and as many bottom-up
    squeeze: int  # ratio of a map's channels to those of a 3x3 convolution

    def layer_positions(self) -> Iterator[tuple[int, bool]]:
        """Resolution index of each stochastic layer, top-down, and whether it is the last of its resolution."""
        for level, at in reversed([*enumerate(self.resolutions)]):
            for number in range(at.num_layers):
                yield level, number == at.num_layers - 1

    def bottleneck(self, level: int, in_channels: int, out_channels: int, gain: float) -> Bottleneck:
        at = self.resolutions[level]
        return Bottleneck(in_channels, out_channels, max(1, at.channels // self.squeeze), at.sides, gain)

    def residuals(self, level: int, num_layers: int) -> list[nn.Module]:
        """Residual blocks of `num_layers` stochastic layers, at least those of one."""
        channels = self.resolutions[level].channels
        count = self.blocks * max(1, num_layers)
        return [Residual(self.bottleneck(level, channels, channels, self.gain)) for _ in range(count)]

    @property
    def gain(self) -> float:
        """Initial scale of all terms added to the features: variance does not grow with depth. arXiv:2011.10650."""
        return 1 / math.sqrt(self.blocks * sum(max(1, at.num_layers) for at in self.resolutions))


class ScaledInitConv2d(nn.Conv2d):
    """A 1x1 convolution whose initial weights and biases `initialize_convolutions` multiplies by `gain`."""

    def __init__(self, in_channels: int, out_channels: int, gain: float) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.gain = gain


class Bottleneck(nn.Sequential):
    """Convolutions: 1x1 to `hidden` channels, 3x3 (1x1 on tiny maps), 1x1 to `out_channels`."""

    def __init__(self, in_channels: int, out_channels: int, hidden: int, sides: Sides, gain: float) -> None:
        kernel = 3 if min(sides) > 2 else 1  # most of a 3x3 kernel would lie in the padding
        super().__init__(
            group_norm(in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, hidden, 1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2),
            nn.SiLU(),
            ScaledInitConv2d(hidden, out_channels, gain),
        )


class BottomUp(nn.Module):
    """Features of an image at each resolution, by a strided convolution and residual blocks."""

    def __init__(self, in_channels: int, sizes: LadderSizes, patch_size: int = 1) -> None:
        super().__init__()
        self.patches = nn.Sequential(*unshuffle(patch_size))
        in_channels *= patch_size**2
        self.stages = nn.ModuleList()
        for level, at in enumerate(sizes.resolutions):
            smaller = nn.Conv2d(in_channels, at.channels, *strided(at.stride))
            self.stages.append(nn.Sequential(smaller, *sizes.residuals(level, at.num_layers)))
            in_channels = at.channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (B, in_channels, H, W) to maps (B, C, h, w), from fine to coarse."""
        x, maps = self.patches(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class TopDownStart(nn.Module):
    """Initial top-down features: a learned map, plus a learned map per class."""

    def __init__(self, coarsest: Resolution, num_classes: int) -> None:
        super().__init__()
        self.shape = (coarsest.channels, *coarsest.sides)
        self.shared = nn.Parameter(torch.zeros(1, *self.shape))
        self.own = nn.Embedding(num_classes, math.prod(self.shape)) if num_classes else None

    def forward(self, y: Tensor | None) -> Tensor:
        """(1, C, h, w) without labels, (B, C, h, w) with labels y (B,)."""
        return self.shared if self.own is None else self.shared + self.own(require_labels(y)).view(-1, *self.shape)


class TopDownBlock(nn.Module):
    """The networks of one stochastic layer.

    level: index of its resolution. num_params: of the posterior. num_prior_params: 0 for a prior that is independent of
    the layers above. num_features: of z. starts_at_prior: whether zero parameters make the posterior equal to the
    prior. after: the path to the next block, or to the finest map.
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
        # Gain 0: priors start as standard normals, relative posteriors at their prior.
        self.prior = sizes.bottleneck(level, channels, num_prior_params + channels, 0.0) if num_prior_params else None
        self.posterior = sizes.bottleneck(level, 2 * channels, num_params, 0.0 if starts_at_prior else 1.0)
        self.join = ScaledInitConv2d(num_features, channels, sizes.gain)
        self.after = after

    def prior_params(self, h: Tensor) -> tuple[Tensor | None, Tensor]:
        """Top-down h (N, C, h, w) to prior parameters (N, num_prior_params, h, w), or None, and an updated h."""
        if self.prior is None:
            return None, h
        params, change = self.prior(h).tensor_split((self.num_prior_params,), 1)
        return params, h + change

    def posterior_params(self, h: Tensor, features: Tensor) -> Tensor:
        """Top-down h and bottom-up features, (N, C, h, w) each, to the posterior's parameters."""
        params: Tensor = self.posterior(torch.cat((h, features), 1))
        return params

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """h and z (N, num_features, h, w) to the h of the next block, or to the finest map."""
        below: Tensor = self.after(h + self.join(z))
        return below


def path_to_next_block(sizes: LadderSizes, level: int, is_last: bool) -> nn.Sequential:
    """Residual blocks after a stochastic layer; after a resolution's last, also upsampling to the next with layers."""
    layers = sizes.residuals(level, 1)
    for at in range(level, 0, -1) if is_last else ():
        here, finer = sizes.resolutions[at], sizes.resolutions[at - 1]
        layers.append(nn.ConvTranspose2d(here.channels, finer.channels, *strided(here.stride)))
        if finer.num_layers:
            break
        layers += sizes.residuals(at - 1, 1)
    return nn.Sequential(*layers)


class LadderHead(nn.Sequential):
    """The finest map to likelihood parameters at the image size."""

    def __init__(self, finest: Resolution, num_channels: int, patch_size: int = 1) -> None:
        # Channels cost most at the image size, and each position of a map of patches gives many parameters.
        width = finest.channels if patch_size > 1 else max(1, finest.channels // 2)
        super().__init__(
            group_norm(finest.channels),
            nn.SiLU(),
            nn.ConvTranspose2d(finest.channels, width, *strided(finest.stride)),
            nn.SiLU(),
            nn.Conv2d(width, num_channels * patch_size**2, 3, padding=1),
            *shuffle(patch_size),
        )


def strided(stride: Sides) -> tuple[Sides, Sides, Sides]:
    """Kernel, stride and padding of a convolution that divides the sides of a map (transposed: multiplies them)."""
    padding = 1 if max(stride) <= 2 else 0  # larger strides use patches without overlap
    return (stride[0] + 2 * padding, stride[1] + 2 * padding), stride, (padding, padding)


def initialize_convolutions(network: nn.Module, weight_norm: bool) -> None:
    """Initialise all convolutions, weight-normalise them if asked, and apply the gains of `ScaledInitConv2d`.

    In this order: a zero weight has no direction that weight normalisation (arXiv:1602.07868) could keep.
    """
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    with torch.no_grad():
        for layer in convolutions:
            # Layers that feed the top-down path keep torch's default, which is smaller: less noise at first.
            if not isinstance(layer, ScaledInitConv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(cast("nn.Parameter", layer.bias))
            if weight_norm:
                parametrizations.weight_norm(layer, dim=int(isinstance(layer, nn.ConvTranspose2d)))  # per output
            if isinstance(layer, ScaledInitConv2d):
                size = layer.parametrizations.weight.original0 if weight_norm else layer.weight  # type: ignore[union-attr]
                cast("nn.Parameter", size).mul_(layer.gain)
                cast("nn.Parameter", layer.bias).mul_(layer.gain)
