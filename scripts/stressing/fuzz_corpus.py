"""Small valid files of every kind that vae_lab reads: the stuff that mutations are made of."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vae_lab.data.decode import PNG_SIGNATURE

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


class Valid(NamedTuple):
    """A whole file."""

    kind: str  # PNG, JPEG, GIF, WEBP, BMP, IDX or IDX.gz
    name: str
    content: bytes


@cache
def corpus() -> tuple[Valid, ...]:
    """Every file, the same ones each time."""
    return *_pictures(), *_by_hand(), *_idx()


def _noise(mode: str, size: tuple[int, int] = (23, 18), seed: int = 0) -> Image.Image:
    """Blocks of random colours: some structure for the encoders, every channel used."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 4), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "a maker", 72.0
    return exif


def _pictures() -> Iterator[Valid]:
    frames = [_noise("RGBA", seed=seed) for seed in (1, 2)]
    several = {"save_all": True, "append_images": frames, "duration": 40}
    text = PngInfo()
    text.add_text("Comment", "plain")
    text.add_text("Comment", "packed " * 9, zip=True)
    text.add_itxt("Title", "no ASCII: ü")
    grey16 = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (9, 11), dtype=np.uint16))
    yield from (_saved("PNG", mode, _noise(mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA"))
    yield _saved("PNG", "palette, alphas", _noise("P"), transparency=bytes(range(0, 256, 16)))
    yield _saved("PNG", "one colour clear", _noise("RGB"), transparency=(255, 0, 0))
    yield _saved("PNG", "16 bit", grey16)
    yield _saved("PNG", "EXIF, text, colours", _noise("RGB"), exif=_exif(), pnginfo=text, icc_profile=bytes(300))
    yield _saved("PNG", "animated", _noise("RGBA"), **several)
    yield from (_saved("JPEG", mode, _noise(mode)) for mode in ("L", "RGB", "CMYK"))
    yield _saved("JPEG", "progressive", _noise("RGB"), progressive=True)
    yield _saved("JPEG", "4:4:4, comment", _noise("RGB"), subsampling=0, quality=95, comment=b"a comment")
    yield _saved("JPEG", "EXIF", _noise("RGB"), exif=_exif(), icc_profile=bytes(300), dpi=(72, 72))
    yield _saved("JPEG", "restarts", _noise("RGB"), restart_marker_blocks=2)
    yield from (_saved("GIF", mode, _noise(mode)) for mode in ("1", "L", "P"))
    yield _saved("GIF", "clear", _noise("P"), transparency=3, interlace=0, comment=b"a comment")
    yield _saved("GIF", "animated", _noise("RGBA"), **several, disposal=2, loop=0)
    yield from (_saved("WEBP", mode, _noise(mode)) for mode in ("RGB", "RGBA"))
    yield _saved("WEBP", "lossless", _noise("RGBA"), lossless=True)
    yield _saved("WEBP", "EXIF", _noise("RGB"), exif=_exif(), icc_profile=bytes(300))
    yield _saved("WEBP", "animated", _noise("RGBA"), **several)
    yield from (_saved("BMP", mode, _noise(mode)) for mode in ("1", "L", "P", "RGB", "RGBA"))


def _saved(kind: str, name: str, picture: Image.Image, **options: object) -> Valid:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return Valid(kind, name, buffer.getvalue())


def _by_hand() -> Iterator[Valid]:
    """What Pillow reads but does not write."""
    pixels = np.asarray(_noise("RGB", (13, 11)))
    rows = b"".join(b"\0" + row.tobytes() for top, left, down, right in ADAM7 for row in pixels[top::down, left::right])
    yield Valid("PNG", "interlaced", png(13, 11, 8, 2, rows, interlace=1))
    grey = np.random.default_rng(0).integers(0, 65536, (5, 6), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in grey)
    yield Valid("PNG", "16 bit, one level clear", png(6, 5, 16, 0, rows, tRNS=struct.pack(">H", grey[0, 0])))
    runs = b"\x05\x63\x00\x03\x01\x02\x03\x00\x00\x00"  # five of 0x63, three as they are, end of line
    yield Valid("BMP", "RLE8", bitmap(8, 4, 8, 1, runs * 4 + b"\x00\x02\x01\x00\x02\x07\x00\x01"))
    yield Valid("BMP", "RLE4", bitmap(8, 4, 4, 2, b"\x08\x3a\x00\x00" * 4 + b"\x00\x01"))


def png(width: int, height: int, depth: int, colours: int, rows: bytes, interlace: int = 0, **chunks: bytes) -> bytes:
    """A PNG of these rows, each with its filter byte."""
    header = struct.pack(">2I5B", width, height, depth, colours, 0, 0, interlace)
    parts = [("IHDR", header), *chunks.items(), ("IDAT", zlib.compress(rows)), ("IEND", b"")]
    return PNG_SIGNATURE + b"".join(chunk(name.encode(), data) for name, data in parts)


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk with a right checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bitmap(width: int, height: int, depth: int, compression: int, data: bytes) -> bytes:
    """A run-length encoded bitmap with a grey palette."""
    levels = 2**depth
    palette = b"".join(bytes([255 * level // (levels - 1)] * 3 + [0]) for level in range(levels))
    start = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, compression, len(data), 0, 0, levels, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + palette + data


def _idx() -> Iterator[Valid]:
    values = np.random.default_rng(0).integers(0, 256, (7, 6, 5), dtype=np.uint8)
    for name, array in (("images", values), ("labels", values[:, 0, 0])):
        yield Valid("IDX", name, idx(array))
        yield Valid("IDX.gz", name, gzip.compress(idx(array), mtime=0))


def idx(array: np.ndarray) -> bytes:
    """A file of MNIST's format that holds these bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
