"""Damaged pictures, IDX files and archives: each is refused or read, and never raises another exception."""

import gzip
import io
import os
import struct
import tarfile
import warnings
import zipfile
from random import Random

import numpy as np
import pytest
from PIL import Image

from vae_lab.data.archives import unpack_archive
from vae_lab.data.decode import PictureOptions, UnreadableImageError, decode
from vae_lab.data.sets.idx import read_idx
from vae_lab.utils.errors import UsageError

OPTIONS = PictureOptions(image_size=16, max_pixels=100_000, range=(0, 255))
MODES = {"png": ("1", "L", "LA", "P", "RGB", "RGBA"), "jpeg": ("L", "RGB", "CMYK"), "gif": ("1", "L", "P"),
         "webp": ("RGB", "RGBA"), "bmp": ("1", "L", "P", "RGB", "RGBA"),
         "tiff": ("1", "L", "LA", "P", "RGB", "CMYK", "I;16", "F"),
         "ppm": ("1", "L", "RGB"), "avif": ("RGB",)}  # fmt: skip


def noise(mode):
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((23, 18), Image.Resampling.BICUBIC)
    return picture.convert("L").convert(mode) if mode in ("I;16", "F") else picture.convert(mode)


def saved(picture, suffix, **options):
    buffer = io.BytesIO()
    picture.save(buffer, suffix, **options)
    return buffer.getvalue()


def whole_files(suffix):
    """Pictures of many kinds, IDX files, archives of pictures."""
    if suffix in MODES:
        exif = Image.Exif()
        exif[0x0112], exif[0x010F], exif[0x011A] = 6, "a maker", 72.0
        files = [saved(noise(mode), suffix) for mode in MODES[suffix]]
        if suffix in ("png", "jpeg", "webp"):
            files.append(saved(noise("RGB"), suffix, exif=exif))
        if suffix in ("png", "gif", "webp"):
            files.append(saved(noise("RGBA"), suffix, save_all=True, append_images=[noise("RGBA").rotate(90)]))
        return files
    if suffix == "idx3-ubyte":
        idx = bytes([0, 0, 8, 3]) + struct.pack(">3I", 7, 6, 5) + bytes(range(210))
        return [idx, gzip.compress(idx, mtime=0)]
    buffer, picture = io.BytesIO(), saved(noise("RGB"), "png")
    if suffix == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.png", picture)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            info = tarfile.TarInfo("a.png")
            info.size = len(picture)
            archive.addfile(info, io.BytesIO(picture))
    return [buffer.getvalue()]


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
    if path.suffix == ".idx3-ubyte":
        return len(read_idx(path).shape) == 3
    if path.suffix in (".zip", ".tgz"):
        return unpack_archive(path, path.parent / "cache").is_dir()
    return decode(path, OPTIONS).pixels.shape == (3, 16, 16)


@pytest.mark.parametrize("suffix", [*MODES, "idx3-ubyte", "zip", "tgz"])
def test_damaged_files_are_refused_or_read(tmp_path, suffix):
    path, rng, files, refused = tmp_path / f"a.{suffix}", Random(suffix), whole_files(suffix), 0
    warnings.simplefilter("ignore")
    for number in range(60):
        path.write_bytes(damaged(rng, files[number % len(files)]) if number >= len(files) else files[number])
        os.utime(path, ns=(number, number))
        try:
            assert read(path)
        except (UsageError, UnreadableImageError) as error:
            assert number >= len(files), error  # the whole ones are read
            refused += 1
    assert refused > 0
