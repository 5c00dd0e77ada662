"""Convolutional encoder and decoder; sizes derived from the image shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vae_lab.core import ImageShape
from vae_lab.networks.mlp import Activation, Initializer, Normalization, dense, initialize


def group_norm(channels: int) -> nn.Module:
    """Group normalisation with groups of at least 4 channels where the width allows. Wu & He 2018, arXiv:1803.08494.

    Independent of the other images of a batch, and the same in training and evaluation mode.
    """
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0 and (g == 1 or channels // g >= 4))
    return nn.GroupNorm(groups, channels)


class Residual(nn.Module):
    """x + f(x), of the shape of x."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.body(x)
        return x + residual


def conv_block(
    layer: nn.Module, channels: int, normalization: Normalization | None, activation: Activation
) -> list[nn.Module]:
    """A convolution, normalisation if given, and an activation."""
    return [layer, *([normalization(channels)] if normalization else []), activation()]


def num_halvings(height: int, width: int, smallest: int = 4) -> int:
    """Number of times both sides can be halved before one is odd or at most `smallest`."""
    count = 0
    while min(height, width) > smallest and height % 2 == 0 and width % 2 == 0:
        height, width, count = height // 2, width // 2, count + 1
    return count


def require_halvings(height: int, width: int, halvings: int, patch_size: int = 1) -> None:
    """ValueError unless both sides of an image, or of its map of patches, can be halved `halvings` times."""
    step = patch_size * 2**halvings
    if height % step or width % step:
        patches = f" in {patch_size}x{patch_size} patches" if patch_size > 1 else ""
        raise ValueError(
            f"a {height}x{width} image{patches} cannot be halved {halvings} times (sides must be multiples of "
            f"{step}).\n"
            f"Choose a size such as {nearest_size(height, width, step)}, or a network with fewer layers of stride 2 "
            "(model.encoder.channels, model.decoder.channels)."
        )


def nearest_size(height: int, width: int, step: int) -> str:
    """The option for the nearest image size whose sides are multiples of `step`."""
    nearest_height, nearest_width = (step * max(1, round(side / step)) for side in (height, width))
    size = f"{nearest_height}" if nearest_height == nearest_width else f"[{nearest_height},{nearest_width}]"
    return f"{nearest_height}x{nearest_width} (data.image_size={size})"


def patch_map(shape: ImageShape, patch_size: int, key: str) -> ImageShape:
    """Shape of an image after `nn.PixelUnshuffle(patch_size)`: (C p^2, H/p, W/p).

    Shi et al. 2016, arXiv:1609.05158. ValueError: `patch_size`, the option `key`, below 1 or no divisor of both sides.
    """
    depth, height, width = shape
    if patch_size < 1:
        raise ValueError(f"{key} is at least 1; found {patch_size}")
    if height % patch_size or width % patch_size:
        common = math.gcd(height, width)
        divisors = ", ".join(str(p) for p in range(1, 17) if common % p == 0)
        raise ValueError(
            f"{key}={patch_size} does not divide both sides of {height}x{width} images.\n"
            f"Choose {key} from {divisors}, or a size such as {nearest_size(height, width, patch_size)}"
        )
    return depth * patch_size**2, height // patch_size, width // patch_size


def default_patch_size(shape: ImageShape, channels: Sequence[int] | None) -> int:
    """4 for images of 64 pixels and more a side, three times as fast; 1 for smaller ones, and for given `channels`."""
    _, *sides = shape
    return 4 if channels is None and min(sides) >= 64 and all(side % 4 == 0 for side in sides) else 1


def unshuffle(patch_size: int) -> list[nn.Module]:
    """The layer from images to maps of patches, if any."""
    return [nn.PixelUnshuffle(patch_size)] if patch_size > 1 else []


def shuffle(patch_size: int) -> list[nn.Module]:
    """The layer from maps of patches to images, if any."""
    return [nn.PixelShuffle(patch_size)] if patch_size > 1 else []


def default_channels(height: int, width: int, first: int, most: int, stem: int = 0) -> list[int]:
    """Channels `first`, 2 `first`, 4 `first`, ... (at most `most`), one per possible halving (at least one).

    stem: number of further entries, for convolutions that keep the size of the map.
    """
    return [min(first * 2**i, most) for i in range(max(1, stem + num_halvings(height, width)))]


def conv_output_side(size: int, kernel_size: int, stride: int, padding: int) -> int:
    """Output side of a convolution."""
    return (size + 2 * padding - kernel_size) // stride + 1


class ConvEncoder(nn.Sequential):
    """Strided convolutions, dense layers, a linear head.

    `channels`: one convolution per entry; None halves the map as often as the image allows, doubling `width` (None: 32,
    or 64 with patches) up to `max_width`. `padding`: `same` (stride 2 halves an even side exactly) or `valid`.
    `normalization`: makes a layer for a number of channels. `patch_size`: above 1, patches of the image become the
    channels of a smaller map, and the first convolution (`channels[0]`, `width`) is then 3x3, of stride 1 unless
    `strides` is a list, the others as usual; None: see `default_patch_size`. ValueError: `strides` and `channels` of
    different lengths, a convolution that leaves an empty map, or a `patch_size` that does not divide the image.
    """

    def __init__(
        self,
        in_shape: ImageShape,
        out_features: int,
        channels: Sequence[int] | None = None,
        strides: Sequence[int] | int = 2,
        kernel_size: int = 4,
        padding: str = "same",
        width: int | None = None,
        max_width: int = 256,
        hidden: Sequence[int] = (),
        normalization: Normalization | None = None,
        activation: Activation = nn.SiLU,
        initializer: Initializer | None = None,
        patch_size: int | None = None,
    ) -> None:
        patch_size = default_patch_size(in_shape, channels) if patch_size is None else patch_size
        depth, height, breadth = patch_map(in_shape, patch_size, "model.encoder.patch_size")
        stem = int(patch_size > 1)
        channels = channels or default_channels(height, breadth, width or 32 << stem, max_width, stem)
        strides = [1] * stem + [strides] * (len(channels) - stem) if isinstance(strides, int) else strides
        if len(strides) != len(channels):
            raise ValueError(
                f"model.encoder.strides: expected {len(channels)}, as many as model.encoder.channels; "
                f"found {list(strides)}"
            )
        kernels = [3] * stem + [kernel_size] * (len(channels) - stem)
        pads = [same_padding(*each) if padding == "same" else 0 for each in zip(kernels, strides, strict=True)]
        sides = [self._side(side, kernels, strides, pads) for side in (height, breadth)]
        layers = unshuffle(patch_size)
        for a, b, kernel, stride, pad in zip([depth, *channels], channels, kernels, strides, pads, strict=False):
            layers += conv_block(nn.Conv2d(a, b, kernel, stride, pad), b, normalization, activation)
        sizes = [channels[-1] * math.prod(sides), *hidden]
        super().__init__(*layers, nn.Flatten(), *dense(sizes, activation), nn.Linear(sizes[-1], out_features))
        initialize(self, initializer)

    @staticmethod
    def _side(side: int, kernels: Sequence[int], strides: Sequence[int], pads: Sequence[int]) -> int:
        left = side
        for i, sizes in enumerate(zip(kernels, strides, pads, strict=True)):
            left = conv_output_side(left, *sizes)
            if left < 1:
                raise ValueError(
                    f"for a side of {side}, convolution {i + 1} of {len(strides)} leaves an empty map: "
                    "choose a larger data.image_size or fewer model.encoder.channels"
                )
        return left


def same_padding(kernel_size: int, stride: int) -> int:
    """Padding that keeps a side at stride 1 (odd kernels) and halves an even side at stride 2."""
    return (kernel_size - 1) // 2 if stride > 1 else kernel_size // 2


class ConvDecoder(nn.Sequential):
    """Dense layers to a small map, transposed convolutions that each double it, a last convolution to the image.

    `channels`: outputs of the transposed convolutions; None mirrors `ConvEncoder`. `map_channels`: those of the small
    map; None for `channels[0]`. `patch_size`: above 1, `channels[0]` is that of the small map, the others those of the
    transposed convolutions, down to a map of patches; two convolutions on it, `channels[-1]` between them, give the
    channels that are shuffled to the image. ValueError: the image, or its map of patches, cannot be halved that often;
    a `patch_size` that does not divide it.
    """

    def __init__(
        self,
        in_features: int,
        out_shape: ImageShape,
        channels: Sequence[int] | None = None,
        map_channels: int | None = None,
        kernel_size: int = 4,
        last_kernel_size: int = 3,
        width: int | None = None,
        max_width: int = 256,
        hidden: Sequence[int] = (),
        normalization: Normalization | None = None,
        activation: Activation = nn.SiLU,
        initializer: Initializer | None = None,
        patch_size: int | None = None,
    ) -> None:
        patch_size = default_patch_size(out_shape, channels) if patch_size is None else patch_size
        depth, height, breadth = patch_map(out_shape, patch_size, "model.decoder.patch_size")
        stem = int(patch_size > 1)
        channels = channels or default_channels(height, breadth, width or 32 << stem, max_width, stem)[::-1]
        widths = [map_channels or channels[0], *channels[stem:]]
        halvings, last = len(widths) - 1, widths[-1]
        require_halvings(*out_shape[1:], halvings, patch_size)
        small = (widths[0], height >> halvings, breadth >> halvings)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += conv_block(upsampling_conv(a, b, kernel_size), b, normalization, activation)
        if stem:
            layers += conv_block(nn.Conv2d(last, last, 3, padding=1), last, normalization, activation)
        head = nn.Conv2d(last, depth, last_kernel_size, padding=last_kernel_size // 2)
        sizes = [in_features, *hidden, math.prod(small)]
        super().__init__(*dense(sizes, activation), nn.Unflatten(1, small), *layers, head, *shuffle(patch_size))
        initialize(self, initializer)


def upsampling_conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.ConvTranspose2d:
    """Transposed convolution of stride 2 that doubles both sides exactly."""
    padding = (kernel_size - 1) // 2
    rest = 2 + 2 * padding - kernel_size
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size, 2, padding, output_padding=rest)
