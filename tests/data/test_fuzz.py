"""Damaged pictures and IDX files: each is refused by name or decoded, and never raises another exception."""

import gzip
import io
import struct
import warnings
from random import Random

import numpy as np
import pytest
from PIL import Image

from vae_lab.data.decode import PictureOptions, decode
from vae_lab.data.sources.idx import read_idx
from vae_lab.utils.errors import UsageError

OPTIONS = PictureOptions(image_size=16, max_pixels=100_000)


def noise(mode):
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    return Image.fromarray(coarse).resize((23, 18), Image.Resampling.BICUBIC).convert(mode)


def saved(picture, suffix, **options):
    buffer = io.BytesIO()
    picture.save(buffer, suffix, **options)
    return buffer.getvalue()


def corpus():
    """Whole files by suffix."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "a maker", 72.0
    several = {"save_all": True, "append_images": [noise("RGBA").rotate(90)]}
    modes = {"png": ("1", "L", "LA", "P", "RGB", "RGBA"), "jpeg": ("L", "RGB", "CMYK"), "gif": ("1", "L", "P"),
             "webp": ("RGB", "RGBA"), "bmp": ("1", "L", "P", "RGB", "RGBA")}  # fmt: skip
    files = [(suffix, saved(noise(mode), suffix)) for suffix, names in modes.items() for mode in names]
    files += [(suffix, saved(noise("RGB"), suffix, exif=exif)) for suffix in ("png", "jpeg", "webp")]
    files += [(suffix, saved(noise("RGBA"), suffix, **several)) for suffix in ("png", "gif", "webp")]
    files.append(("png", saved(noise("P"), "png", transparency=bytes(range(0, 256, 16)))))
    files.append(("png", saved(Image.fromarray(np.arange(99, dtype=np.uint16).reshape(9, 11) * 660), "png")))
    files.append(("jpeg", saved(noise("RGB"), "jpeg", progressive=True)))
    idx = bytes([0, 0, 8, 3]) + struct.pack(">3I", 7, 6, 5) + bytes(range(210))
    return [*files, ("idx", idx), ("idx", gzip.compress(idx, mtime=0))]


def damaged(rng, content):
    """Some bytes changed, removed or put in, a header's number made extreme, or the end cut off."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, size = rng.randrange(len(content)), rng.choice((1, 2, 4))
        at = rng.choice((at, at % 64))
        new = rng.choice((rng.randbytes(size), bytes(size), b"\xff" * size, b"\x7f" + b"\xff" * (size - 1)))
        content[at : at + rng.choice((size, size, 0, 12))] = new
    return bytes(content[: rng.choice((len(content), len(content), rng.randrange(len(content) + 1)))])


def read(path):
    return read_idx(path, num_dims=3).numpy() if path.suffix == ".idx" else decode(path, OPTIONS)


@pytest.mark.parametrize("suffix", ["png", "jpeg", "gif", "webp", "bmp", "idx"])
def test_damaged_files_are_refused_by_name_or_decoded(tmp_path, suffix):
    path, rng, refused = tmp_path / f"damaged.{suffix}", Random(suffix), 0
    files = [content for kind, content in corpus() if kind == suffix]
    warnings.simplefilter("ignore")
    for number in range(100):
        path.write_bytes(damaged(rng, files[number % len(files)]))
        try:
            pixels = read(path)
        except UsageError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert pixels.dtype == np.uint8 and (suffix == "idx" or pixels.shape == (3, 16, 16))
    assert 0 < refused <= 100


def test_the_whole_files_are_decoded(tmp_path):
    for suffix, content in corpus():
        (tmp_path / f"whole.{suffix}").write_bytes(content)
        assert read(tmp_path / f"whole.{suffix}").size > 0
