"""PNG and GIF encoding of pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vae_lab.figures.canvas import Pixels

if TYPE_CHECKING:
    from PIL.Image import Image

STEP = "global_step"  # PNG text chunk that orders frames, whether files are named by epoch or by step
MAX_FRAMES = 100
GIF_SECONDS = 10.0
SLOWEST, FASTEST, LAST = 500, 60, 1500  # milliseconds per frame


def encode_png(pixels: Pixels, step: int) -> bytes:
    """PNG of uint8 (H, W, 3), with the step in a text chunk."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info, buffer = PngInfo(), io.BytesIO()
    info.add_text(STEP, str(step))
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info, compress_level=4)
    return buffer.getvalue()


def find_frames(folder: Path, what: str) -> list[Path]:
    """PNG files of one picture in the order of training, one per step."""
    from PIL import Image

    by_step = {}
    for path in sorted(folder.glob(f"{what}_*=*.png")):
        with Image.open(path) as image:
            by_step[int(image.info.get(STEP, 0))] = path
    return [by_step[step] for step in sorted(by_step)]


def encode_gif(frames: Sequence[Path]) -> tuple[bytes, tuple[int, int]]:
    """GIF of at most 100 evenly spaced frames, the last one shown longer; and its width and height."""
    from PIL import Image

    if len(frames) > MAX_FRAMES:
        frames = [frames[round(k * (len(frames) - 1) / (MAX_FRAMES - 1))] for k in range(MAX_FRAMES)]
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
    """Frames in 256 colours, padded with white to one size: a resumed run may draw a different one."""
    from PIL import Image

    for path in frames:
        with Image.open(path) as image:
            canvas = Image.new("RGB", size, "white")
            canvas.paste(image, (0, 0))
            yield canvas.quantize(256, dither=Image.Dither.NONE)
