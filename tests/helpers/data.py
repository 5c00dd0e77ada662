"""Options of a quick run, and small pictures."""

import gzip
import struct
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


def write_data_root(root: Path) -> Path:
    """70,000 images in MNIST's files, every 100th of them not blank, and 40 pictures in pokemon."""
    folder, rng = root / "MNIST" / "raw", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images = np.zeros((count, 28, 28), dtype=np.uint8)
        images[::100, 6:22, 6:22] = rng.integers(0, 256, (count // 100, 16, 16))
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    write_pictures(root / "pokemon", count=40, size=24)
    return root


def write_idx(path: Path, values: np.ndarray) -> None:
    """The format of MNIST's files, compressed."""
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), 1))
