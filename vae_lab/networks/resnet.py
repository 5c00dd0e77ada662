"""Residual networks: with the interface of `vae_lab.networks.conv`, and between images and a latent map.

Pre-activation blocks: He et al. 2016, arXiv:1603.05027. A `SpatialEncoder` returns a map (B, out_features, h, w) and
has (h, w) as `spatial_shape`, a `SpatialDecoder` takes one; each position has a local receptive field, as in VQ-VAE
(van den Oord et al. 2017, arXiv:1711.00937, section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from vae_lab.core import ImageShape
from vae_lab.networks.conv import (
    Residual,
    default_channels,
    default_patch_size,
    group_norm,
    patch_map,
    require_halvings,
    shuffle,
    unshuffle,
    upsampling_conv,
)


class ResidualBlock(Residual):
    """x + f(x), f two 3x3 convolutions; f starts at zero, so that a new block is the identity."""

    def __init__(self, channels: int) -> None:
        first, last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        super().__init__(nn.Sequential(group_norm(channels), nn.SiLU(), first, group_norm(channels), nn.SiLU(), last))


class ResNetEncoder(nn.Sequential):
    """A strided convolution and `blocks` residual blocks per resolution, then a linear head.

    `patch_size`: above 1, patches of the image become the channels of a smaller map, and the first convolution
    (`channels[0]`) keeps its size; None: see `default_patch_size`. ValueError: an image, or its map of patches, that
    cannot be halved once for each other entry of `channels`; a `patch_size` that does not divide it.
    """

    def __init__(
        self,
        in_shape: ImageShape,
        out_features: int,
        channels: Sequence[int] | None = None,
        blocks: int = 1,
        width: int = 32,
        max_width: int = 128,
        patch_size: int | None = None,
    ) -> None:
        patch_size = default_patch_size(in_shape, channels) if patch_size is None else patch_size
        depth, height, breadth = patch_map(in_shape, patch_size, "model.encoder.patch_size")
        stem = int(patch_size > 1)
        channels = channels or default_channels(height, breadth, width, max_width, stem)
        halvings = len(channels) - stem
        require_halvings(*in_shape[1:], halvings, patch_size)
        convolutions = [(3, 1, 1)] * stem + [(4, 2, 1)] * halvings  # kernel, stride, padding
        layers = unshuffle(patch_size)
        for a, b, sizes in zip([depth, *channels], channels, convolutions, strict=False):
            layers += [nn.Conv2d(a, b, *sizes), *(ResidualBlock(b) for _ in range(blocks))]
        features = channels[-1] * (height >> halvings) * (breadth >> halvings)
        super().__init__(*layers, group_norm(channels[-1]), nn.SiLU(), nn.Flatten(), nn.Linear(features, out_features))


class ResNetDecoder(nn.Sequential):
    """A linear layer to the smallest map, then `blocks` residual blocks and an upsampling per resolution.

    `patch_size`: above 1, the channels of the last map are shuffled to the image; None: see `default_patch_size`.
    ValueError: as for `ResNetEncoder`.
    """

    def __init__(
        self,
        in_features: int,
        out_shape: ImageShape,
        channels: Sequence[int] | None = None,
        blocks: int = 1,
        width: int = 32,
        max_width: int = 128,
        patch_size: int | None = None,
    ) -> None:
        patch_size = default_patch_size(out_shape, channels) if patch_size is None else patch_size
        depth, height, breadth = patch_map(out_shape, patch_size, "model.decoder.patch_size")
        stem = int(patch_size > 1)
        channels = channels or default_channels(height, breadth, width, max_width, stem)[::-1]
        halvings = len(channels) - stem
        require_halvings(*out_shape[1:], halvings, patch_size)
        small = (channels[0], height >> halvings, breadth >> halvings)
        layers: list[nn.Module] = []
        for a, b in pairwise(channels):
            layers += [*(ResidualBlock(a) for _ in range(blocks)), upsampling_conv(a, b, 4)]
        layers += [ResidualBlock(channels[-1]) for _ in range(blocks)]
        last = nn.Conv2d(channels[-1], depth, 3, padding=1) if stem else upsampling_conv(channels[-1], depth, 4)
        head = [group_norm(channels[-1]), nn.SiLU(), last, *shuffle(patch_size)]
        super().__init__(nn.Linear(in_features, math.prod(small)), nn.Unflatten(1, small), *layers, *head)


class SpatialEncoder(nn.Sequential):
    """`halvings` strided convolutions, `blocks` residual blocks on the resulting map, a 1x1 head."""

    def __init__(
        self, in_shape: ImageShape, out_features: int, width: int = 64, blocks: int = 2, halvings: int = 2
    ) -> None:
        spatial_shape = halved_sides(in_shape, halvings, "model.encoder.halvings")
        layers: list[nn.Module] = []
        for a, b in pairwise([in_shape[0], *[width] * halvings]):
            layers += [nn.Conv2d(a, b, 4, 2, 1), nn.SiLU()]
        super().__init__(*layers[:-1], *residual_stack(width, blocks), nn.Conv2d(width, out_features, 1))
        self.spatial_shape = spatial_shape


class SpatialDecoder(nn.Sequential):
    """A 3x3 convolution and `blocks` residual blocks on the map, then `halvings` upsamplings to the image."""

    def __init__(
        self, in_features: int, out_shape: ImageShape, width: int = 64, blocks: int = 2, halvings: int = 2
    ) -> None:
        spatial_shape = halved_sides(out_shape, halvings, "model.decoder.halvings")
        layers: list[nn.Module] = []
        for a, b in pairwise([*[width] * halvings, out_shape[0]]):
            layers += [upsampling_conv(a, b, 4), nn.SiLU()]
        super().__init__(nn.Conv2d(in_features, width, 3, padding=1), *residual_stack(width, blocks), *layers[:-1])
        self.spatial_shape = spatial_shape


def residual_stack(width: int, blocks: int) -> list[nn.Module]:
    """Pre-activation residual blocks, and the normalisation and activation that follow them."""
    return [*(ResidualBlock(width) for _ in range(blocks)), group_norm(width), nn.SiLU()]


def halved_sides(image: ImageShape, halvings: int, key: str) -> tuple[int, int]:
    """Sides after `halvings` halvings. ValueError: sides that cannot be halved that often, or `halvings` below 1."""
    if halvings < 1:
        raise ValueError(f"{key} is at least 1; found {halvings}")
    _, height, width = image
    require_halvings(height, width, halvings)
    return height >> halvings, width >> halvings


def require_same_spatial_shape(encoder: nn.Module, decoder: nn.Module) -> None:
    """ValueError unless encoder and decoder have latents of the same kind: maps of the same size, or vectors."""
    left, taken = (getattr(network, "spatial_shape", ()) for network in (encoder, decoder))
    if left != taken:
        words = ["x".join(map(str, sides)) + " maps" if sides else "vectors" for sides in (left, taken)]
        raise ValueError(
            f"model.decoder takes {words[1]}, but model.encoder returns {words[0]}.\n"
            "Choose model=spatial with the same model.encoder.halvings and model.decoder.halvings, or vector "
            "latents on both sides (model=mlp, conv or resnet)"
        )
