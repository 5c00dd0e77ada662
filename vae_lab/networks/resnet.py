"""Residual networks with the interface of `vae_lab.networks.conv`.

Pre-activation blocks: He et al. 2016, arXiv:1603.05027.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vae_lab.core import ImageShape
from vae_lab.networks.conv import default_channels, group_norm, require_halvings, upsampling_conv


class ResidualBlock(nn.Module):
    """x + f(x), f two 3x3 convolutions; f starts at zero, so that a new block is the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            group_norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            group_norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        last = self.body[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        residual: Tensor = self.body(x)
        return x + residual


class ResNetEncoder(nn.Sequential):
    """A strided convolution and `blocks` residual blocks per resolution, then a linear head.

    ValueError: an image that cannot be halved `len(channels)` times.
    """

    def __init__(
        self,
        in_shape: ImageShape,
        out_features: int,
        channels: Sequence[int] | None = None,
        blocks: int = 1,
        width: int = 32,
        max_width: int = 128,
    ) -> None:
        depth, height, breadth = in_shape
        channels = channels or default_channels(height, breadth, width, max_width)
        require_halvings(height, breadth, len(channels))
        layers: list[nn.Module] = []
        for a, b in pairwise([depth, *channels]):
            layers += [nn.Conv2d(a, b, 4, 2, 1), *(ResidualBlock(b) for _ in range(blocks))]
        features = channels[-1] * (height >> len(channels)) * (breadth >> len(channels))
        super().__init__(*layers, group_norm(channels[-1]), nn.SiLU(), nn.Flatten(), nn.Linear(features, out_features))


class ResNetDecoder(nn.Sequential):
    """A linear layer to the smallest map, then `blocks` residual blocks and an upsampling per resolution.

    ValueError: an image that cannot be halved `len(channels)` times.
    """

    def __init__(
        self,
        in_features: int,
        out_shape: ImageShape,
        channels: Sequence[int] | None = None,
        blocks: int = 1,
        width: int = 32,
        max_width: int = 128,
    ) -> None:
        depth, height, breadth = out_shape
        channels = channels or default_channels(height, breadth, width, max_width)[::-1]
        require_halvings(height, breadth, len(channels))
        small = (channels[0], height >> len(channels), breadth >> len(channels))
        layers: list[nn.Module] = []
        for a, b in pairwise(channels):
            layers += [*(ResidualBlock(a) for _ in range(blocks)), upsampling_conv(a, b, 4)]
        layers += [ResidualBlock(channels[-1]) for _ in range(blocks)]
        head = [group_norm(channels[-1]), nn.SiLU(), upsampling_conv(channels[-1], depth, 4)]
        super().__init__(nn.Linear(in_features, math.prod(small)), nn.Unflatten(1, small), *layers, *head)
