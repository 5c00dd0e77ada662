"""Resolutions of a ladder, from fine to coarse: sides, channels and number of stochastic layers of each map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

Sides = tuple[int, int]  # height and width, or their strides

MAX_LAST_STRIDE = 8  # largest side that a single stride reduces to 1
MIN_HALVED_SIDE = 4  # sides up to this one are not halved
STRIDE_FACTORS = (2, 3, 5, 7)  # candidate strides, in order of preference


class Resolution(NamedTuple):
    """A feature map."""

    stride: Sides  # divides the sides of the next finer map, or of the image
    sides: Sides
    channels: int
    num_layers: int  # stochastic layers


def resolutions(
    image: Sides,
    layers: int | Sequence[int],
    channels: Sequence[int] | None,
    strides: Sequence[int] | None,
    width: int,
    max_width: int,
    patch_size: int = 1,
) -> tuple[Resolution, ...]:
    """Resolutions that the options of a ladder give for images, or maps of `patch_size` patches, of these sides.

    layers: stochastic layers of each resolution, or one number for all. channels: of each resolution; None for width,
    2 width, ... up to max_width. strides: between resolutions, the first from the image; None for halvings and a last
    stride to a 1x1 map, or the first of these if `layers` or `channels` has fewer entries; a map of patches is then
    the first resolution itself. ValueError: sides that the strides do not divide, lists of different lengths, a
    coarsest resolution without a stochastic layer.
    """
    given = next((len(option) for option in (layers, channels) if isinstance(option, Sequence)), None)
    if strides is None:
        stem = [(1, 1)] if patch_size > 1 else []
        steps = [*stem, *default_strides(image, patch_size)][: given or None]
    else:
        steps = _checked_strides(image, strides, patch_size)
    sides = list(accumulate(steps, lambda map_, by: (map_[0] // by[0], map_[1] // by[1]), initial=image))[1:]
    counts = [layers] * len(sides) if isinstance(layers, int) else layers
    _require_each("layers", counts, [0] * (len(sides) - 1) + [1], sides)
    widths = channels or [min(width * 2**i, max_width) for i in range(len(sides))]
    _require_each("channels", widths, [1] * len(sides), sides)
    return tuple(map(Resolution, steps, sides, widths, counts))


def default_strides(image: Sides, patch_size: int = 1) -> list[Sides]:
    """Strides of 2 (3, ...) down to sides of at most 8, then one stride to a 1x1 map.

    28x28: 14x14, 7x7, 1x1. 32x32: 16x16, 8x8, 4x4, 1x1. ValueError: sides without such factors.
    """
    strides = _strides_of(image)
    if not strides:
        size = patch_size * nearest_size(max(image))
        raise ValueError(
            f"model=ladder: the sides of {_images(image, patch_size)} cannot be divided by 2, 3, 5 or 7 down to "
            f"{MAX_LAST_STRIDE} or less.\nChoose data.image_size={size}"
        )
    return strides


def _strides_of(image: Sides) -> list[Sides] | None:
    strides, (height, width) = [], image
    while max(height, width) > MAX_LAST_STRIDE or (
        min(height, width) > MIN_HALVED_SIDE and height % 2 == width % 2 == 0
    ):
        factor = next((factor for factor in STRIDE_FACTORS if height % factor == width % factor == 0), None)
        if factor is None:
            return None
        strides.append((factor, factor))
        height, width = height // factor, width // factor
    return strides if height == width == 1 else [*strides, (height, width)]


def nearest_size(size: int) -> int:
    """Side nearest to `size` for which a square image has usual strides."""
    return next(n for d in range(size + 1) for n in (size + d, size - d) if n > 1 and _strides_of((n, n)) is not None)


def _checked_strides(image: Sides, strides: Sequence[int], patch_size: int) -> list[Sides]:
    if not strides or min(strides) < 1:
        raise ValueError(f"model.strides has one stride of at least 1 per resolution; found {list(strides)}")
    height, width = image
    for i, stride in enumerate(strides):
        if height % stride or width % stride:
            whole = math.prod(strides)
            size = patch_size * whole * max(1, round(max(image) / whole))
            raise ValueError(
                f"model.strides={list(strides)}: for {_images(image, patch_size)}, stride {stride} of resolution "
                f"{i + 1} does not divide a {height}x{width} map.\n"
                f"Choose {_nearest_strides((height, width), strides[:i])} or data.image_size={size}"
            )
        height, width = height // stride, width // stride
    return [(stride, stride) for stride in strides]


def _nearest_strides(left: Sides, beginning: Sequence[int]) -> str:
    """Option with strides that begin with `beginning` and divide the map that it leaves."""
    rest = _strides_of(left)
    if rest is None or any(vertical != horizontal for vertical, horizontal in rest):
        return "model.strides=null"
    return f"model.strides={[*beginning, *(stride for stride, _ in rest)]}"


def _require_each(option: str, given: Sequence[int], least: Sequence[int], sides: Sequence[Sides]) -> None:
    """ValueError unless an option has one number of at least these for each resolution."""
    padded = [*given, *[given[-1] if given else 1] * len(sides)]
    nearest = [max(pair) for pair in zip(padded, least, strict=False)]
    if list(given) != nearest:
        maps = ", ".join(f"{height}x{width}" for height, width in sides)
        raise ValueError(
            f"model.{option}: expected those of each resolution, from fine to coarse, at least {least} "
            f"(here {len(sides)}: {maps}); found {list(given)}.\nChoose model.{option}={nearest}"
        )


def _images(sides: Sides, patch_size: int) -> str:
    return f"{sides[0]}x{sides[1]} {'images' if patch_size == 1 else 'maps of patches'}"
