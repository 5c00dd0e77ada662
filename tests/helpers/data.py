"""Options of a quick run, and small pictures."""

from pathlib import Path

import numpy as np
from PIL import Image

FAST = ("debug=fast", "trainer.num_threads=1")


def write_pictures(folder: Path, count: int = 30, size: int = 20, seed: int = 0) -> Path:
    """Colour pictures that differ: a bright square somewhere on a coloured ground."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.full((size, size, 3), rng.integers(0, 200, 3), dtype=np.uint8)
        y, x = rng.integers(0, size // 2, 2)
        pixels[y : y + size // 3, x : x + size // 3] = 255
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder
