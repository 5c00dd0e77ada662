"""Resolutions of a ladder, from fine to coarse: sides, channels and number of stochastic layers of each map."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    sides = sides_after(image, steps)
    counts = _checked_layers(layers, sides)
    widths = _checked_channels(channels, sides) or [min(width * 2**i, max_width) for i in range(len(steps))]
    return tuple(map(Resolution, steps, sides, widths, counts))


def sides_after(image: Sides, strides: Sequence[Sides]) -> list[Sides]:
    """Sides of the map after each stride."""
    sides = [image]
    for vertical, horizontal in strides:
        sides.append((sides[-1][0] // vertical, sides[-1][1] // horizontal))
    return sides[1:]


def default_strides(image: Sides, patch_size: int = 1) -> list[Sides]:
    """Strides of 2 (3, ...) down to sides of at most 8, then one stride to a 1x1 map.

    28x28: 14x14, 7x7, 1x1. 32x32: 16x16, 8x8, 4x4, 1x1. ValueError: sides without such factors.
    """
    strides = _strides_of(image)
    if not strides:
        size = patch_size * nearest_size(max(image))
        raise ValueError(
            f"model=ladder: the sides of {_images(image, patch_size)} cannot be divided by {_listed(STRIDE_FACTORS)} "
            f"down to {MAX_LAST_STRIDE} or less.\nChoose data.image_size={size}"
        )
    return strides


def _strides_of(image: Sides) -> list[Sides] | None:
    strides, (height, width) = [], image
    while (factor := _next_factor(height, width)) is not None:
        strides.append((factor, factor))
        height, width = height // factor, width // factor
    if max(height, width) > MAX_LAST_STRIDE:
        return None
    return strides if height == width == 1 else [*strides, (height, width)]


def _next_factor(height: int, width: int) -> int | None:
    if max(height, width) <= MAX_LAST_STRIDE and (height % 2 or width % 2 or min(height, width) <= MIN_HALVED_SIDE):
        return None
    return next((factor for factor in STRIDE_FACTORS if height % factor == 0 and width % factor == 0), None)


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
                f"{i + 1} does not divide a {_text((height, width))} map.\n"
                f"Choose {_nearest_strides(image, strides[:i])} or data.image_size={size}"
            )
        height, width = height // stride, width // stride
    return [(stride, stride) for stride in strides]


def _nearest_strides(image: Sides, beginning: Sequence[int]) -> str:
    """Option with strides that divide an image and begin with `beginning`, which divides it."""
    left = (image[0] // math.prod(beginning), image[1] // math.prod(beginning))
    rest = _strides_of(left)
    if rest is None or any(vertical != horizontal for vertical, horizontal in rest):
        return "model.strides=null"
    return f"model.strides={[*beginning, *(stride for stride, _ in rest)]}"


def _checked_layers(layers: int | Sequence[int], sides: Sequence[Sides]) -> list[int]:
    counts = [layers] * len(sides) if isinstance(layers, int) else list(layers)
    nearest = [max(0, count) for count in [*counts, *[1] * len(sides)][: len(sides)]]
    nearest[-1] = max(1, nearest[-1])
    if counts != nearest:
        raise ValueError(
            "model.layers: expected the stochastic layers of each resolution, from fine to coarse, 0 or more, and at "
            f"least 1 at the coarsest ({_maps(sides)}); found {counts}.\nChoose model.layers={nearest}"
        )
    return counts


def _checked_channels(channels: Sequence[int] | None, sides: Sequence[Sides]) -> list[int]:
    if not channels:
        return []
    nearest = [max(1, count) for count in [*channels, *[channels[-1]] * len(sides)][: len(sides)]]
    if list(channels) != nearest:
        raise ValueError(
            f"model.channels: expected those of each resolution, from fine to coarse ({_maps(sides)}); found "
            f"{list(channels)}.\nChoose model.channels={nearest}, or null"
        )
    return nearest


def _maps(sides: Sequence[Sides]) -> str:
    return f"here {len(sides)}: {', '.join(map(_text, sides))}"


def _images(sides: Sides, patch_size: int) -> str:
    return f"{_text(sides)} {'images' if patch_size == 1 else 'maps of patches'}"


def _text(sides: Sides) -> str:
    return f"{sides[0]}x{sides[1]}"


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"
