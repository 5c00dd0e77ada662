"""The resolutions of a ladder, from fine to coarse: the sides of each map, its channels, its stochastic layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Sides = tuple[int, int]  # height and width, or what they are divided by

SMALL = 8  # a side that one stride takes to 1
LAST_HALVED = 4  # smaller sides are not halved
FACTORS = (2, 3, 5, 7)  # that a side larger than SMALL is divided by


class Resolution(NamedTuple):
    """One map of features."""

    stride: Sides  # what the sides of the finer map, or of the image, are divided by
    sides: Sides
    channels: int
    num_layers: int  # stochastic ones


def resolutions(
    image: Sides,
    layers: int | Sequence[int],
    channels: Sequence[int] | None,
    strides: Sequence[int] | None,
    width: int,
    max_width: int,
) -> tuple[Resolution, ...]:
    """What the options of a ladder mean for images of these sides.

    layers: stochastic layers of each resolution, or one number for all. channels: of each; None for width, 2 width, ...
    up to max_width. strides: between them, the first from the image on; None for halvings and a last step to a map of
    one place, or as many of these as `layers` or `channels` have entries. ValueError: sides that cannot be divided so,
    lists of different lengths, a coarsest resolution without a stochastic layer.
    """
    given = next((len(option) for option in (layers, channels) if isinstance(option, Sequence)), None)
    steps = usual_strides(image)[: given or None] if strides is None else _checked_strides(image, strides)
    sides = sides_after(image, steps)
    counts = _checked_layers(layers, sides)
    widths = _checked_channels(channels, sides) or [min(width * 2**i, max_width) for i in range(len(steps))]
    return tuple(map(Resolution, steps, sides, widths, counts))


def sides_after(image: Sides, strides: Sequence[Sides]) -> list[Sides]:
    """The sides of each map."""
    sides = [image]
    for vertical, horizontal in strides:
        sides.append((sides[-1][0] // vertical, sides[-1][1] // horizontal))
    return sides[1:]


def usual_strides(image: Sides) -> list[Sides]:
    """Halvings (thirds, ...) down to sides of at most 8, then one step to a map of one place.

    28x28: 14x14, 7x7, 1x1. 32x32: 16x16, 8x8, 4x4, 1x1. ValueError: sides that have no such factors.
    """
    strides = _strides_of(image)
    if not strides:
        size = nearest_size(max(image))
        raise ValueError(
            f"model=ladder: the sides of {_text(image)} images cannot be divided by {_listed(FACTORS)} down to {SMALL} "
            f"or less.\nChoose data.image_size={size}"
        )
    return strides


def _strides_of(image: Sides) -> list[Sides] | None:
    strides, (height, width) = [], image
    while (factor := _next_factor(height, width)) is not None:
        strides.append((factor, factor))
        height, width = height // factor, width // factor
    if max(height, width) > SMALL:
        return None
    return strides if height == width == 1 else [*strides, (height, width)]


def _next_factor(height: int, width: int) -> int | None:
    if max(height, width) <= SMALL and (height % 2 or width % 2 or min(height, width) <= LAST_HALVED):
        return None
    return next((factor for factor in FACTORS if height % factor == 0 and width % factor == 0), None)


def nearest_size(size: int) -> int:
    """The side nearest to `size` of which a square image has the usual strides."""
    return next(n for d in range(size) for n in (size + d, size - d) if n > 1 and _strides_of((n, n)) is not None)


def _checked_strides(image: Sides, strides: Sequence[int]) -> list[Sides]:
    if not strides or min(strides) < 1:
        raise ValueError(f"model.strides has a number of at least 1 for each resolution; found {list(strides)}")
    height, width = image
    for i, stride in enumerate(strides):
        if height % stride or width % stride:
            whole = math.prod(strides)
            size = whole * max(1, round(max(image) / whole))
            raise ValueError(
                f"model.strides={list(strides)}: of {_text(image)} images, stride {stride} of resolution {i + 1} does "
                f"not divide a map of {_text((height, width))}.\nChoose {_nearest_strides(image, strides[:i])} or "
                f"data.image_size={size}"
            )
        height, width = height // stride, width // stride
    return [(stride, stride) for stride in strides]


def _nearest_strides(image: Sides, beginning: Sequence[int]) -> str:
    """Strides that divide an image and begin as these, which do."""
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
            "model.layers are the stochastic layers of each resolution, from fine to coarse, 0 or more, and at least "
            f"1 of the coarsest ({_maps(sides)}); found {counts}.\nChoose model.layers={nearest}"
        )
    return counts


def _checked_channels(channels: Sequence[int] | None, sides: Sequence[Sides]) -> list[int]:
    if not channels:
        return []
    nearest = [max(1, count) for count in [*channels, *[channels[-1]] * len(sides)][: len(sides)]]
    if list(channels) != nearest:
        raise ValueError(
            f"model.channels are those of each resolution, from fine to coarse ({_maps(sides)}); found "
            f"{list(channels)}.\nChoose model.channels={nearest}, or null"
        )
    return nearest


def _maps(sides: Sequence[Sides]) -> str:
    return f"here {len(sides)}: {', '.join(map(_text, sides))}"


def _text(sides: Sides) -> str:
    return f"{sides[0]}x{sides[1]}"


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"
