"""Fully convolutional networks between images and a latent map, each position of which has a local receptive field.

An encoder returns (B, out_features, h, w) and has (h, w) as `spatial_shape`; a decoder takes (B, in_features, h, w) and
has the same attribute. As in VQ-VAE: van den Oord et al. 2017, arXiv:1711.00937, section 4.1.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from vae_lab.core import ImageShape
from vae_lab.networks.conv import group_norm, require_halvings, upsampling_conv
from vae_lab.networks.resnet import ResidualBlock


class SpatialEncoder(nn.Sequential):
    """`halvings` strided convolutions, `blocks` residual blocks on the resulting map, a 1x1 head.

    ValueError: an image that cannot be halved that often, or `halvings` below 1.
    """

    def __init__(
        self, in_shape: ImageShape, out_features: int, width: int = 64, blocks: int = 2, halvings: int = 2
    ) -> None:
        depth, height, breadth = in_shape
        spatial_shape = halved_sides(height, breadth, halvings, "model.encoder.halvings")
        layers: list[nn.Module] = []
        for a, b in pairwise([depth, *[width] * halvings]):
            layers += [nn.Conv2d(a, b, 4, 2, 1), nn.SiLU()]
        super().__init__(*layers[:-1], *residual_stack(width, blocks), nn.Conv2d(width, out_features, 1))
        self.spatial_shape = spatial_shape


class SpatialDecoder(nn.Sequential):
    """A 3x3 convolution and `blocks` residual blocks on the map, then `halvings` upsamplings to the image.

    ValueError: an image that cannot be halved that often, or `halvings` below 1.
    """

    def __init__(
        self, in_features: int, out_shape: ImageShape, width: int = 64, blocks: int = 2, halvings: int = 2
    ) -> None:
        depth, height, breadth = out_shape
        spatial_shape = halved_sides(height, breadth, halvings, "model.decoder.halvings")
        layers: list[nn.Module] = []
        for a, b in pairwise([*[width] * halvings, depth]):
            layers += [upsampling_conv(a, b, 4), nn.SiLU()]
        super().__init__(nn.Conv2d(in_features, width, 3, padding=1), *residual_stack(width, blocks), *layers[:-1])
        self.spatial_shape = spatial_shape


def residual_stack(width: int, blocks: int) -> list[nn.Module]:
    """Pre-activation residual blocks, and the normalisation and activation that follow them."""
    return [*(ResidualBlock(width) for _ in range(blocks)), group_norm(width), nn.SiLU()]


def halved_sides(height: int, width: int, halvings: int, key: str) -> tuple[int, int]:
    """Sides after `halvings` halvings. ValueError: sides that cannot be halved that often, or `halvings` below 1."""
    if halvings < 1:
        raise ValueError(f"{key} is at least 1; found {halvings}")
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
