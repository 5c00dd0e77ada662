"""Pictures as the bytes of files: PNG and GIF."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vae_lab.figures.canvas import Pixels

if TYPE_CHECKING:
    from PIL.Image import Image

STEP = "global_step"  # the PNG text chunk that orders frames, whether named by epoch or by step
MOST_FRAMES = 100
GIF_SECONDS = 10.0
SLOWEST, FASTEST, LAST = 500, 60, 1500  # milliseconds a frame is shown


def encode_png(pixels: Pixels, step: int) -> bytes:
    """uint8 (H, W, 3) as PNG that remembers the step it shows."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info, buffer = PngInfo(), io.BytesIO()
    info.add_text(STEP, str(step))
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info, compress_level=4)
    return buffer.getvalue()


def frames_of(folder: Path, what: str) -> list[Path]:
    """The PNGs of one picture in the order of training, one for each step shown."""
    from PIL import Image

    by_step = {}
    for path in sorted(folder.glob(f"{what}_*=*.png")):
        with Image.open(path) as image:
            by_step[int(image.info.get(STEP, 0))] = path
    return [by_step[step] for step in sorted(by_step)]


def encode_gif(frames: Sequence[Path]) -> tuple[bytes, tuple[int, int]]:
    """The frames in turn, at most 100 evenly chosen, the last for longer; and width and height."""
    from PIL import Image

    if len(frames) > MOST_FRAMES:
        frames = [frames[round(k * (len(frames) - 1) / (MOST_FRAMES - 1))] for k in range(MOST_FRAMES)]
    sizes = []
    for path in frames:
        with Image.open(path) as image:
            sizes.append(image.size)
    size = max(width for width, _ in sizes), max(height for _, height in sizes)
    images, buffer = _padded(frames, size), io.BytesIO()
    each = int(min(max(1000 * GIF_SECONDS / len(frames), FASTEST), SLOWEST))
    durations = [each] * (len(frames) - 1) + [LAST]
    next(images).save(buffer, "GIF", save_all=True, append_images=images, duration=durations, loop=0)
    return buffer.getvalue(), size


def _padded(frames: Sequence[Path], size: tuple[int, int]) -> Iterator[Image]:
    """One frame at a time in 256 colours, on white of one size: a resumed run may draw another."""
    from PIL import Image

    for path in frames:
        with Image.open(path) as image:
            canvas = Image.new("RGB", size, "white")
            canvas.paste(image, (0, 0))
            yield canvas.quantize(256, dither=Image.Dither.NONE)
