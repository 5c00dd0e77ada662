"""Ways to damage a file: any bytes, its parts in another order, extreme numbers, damage under a right checksum.

Each takes a source of randomness and a file, and returns bytes. An exact one leaves a checksum, where the format has
one, that only the original fits: what is still read then has to be the original's pixels.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import NamedTuple

from scripts.stressing.fuzz_corpus import Valid, chunk, corpus
from vae_lab.data.decode import PNG_SIGNATURE

KINDS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "IDX", "IDX.gz")
CHECKSUMMED = ("PNG", "IDX.gz")
SHORTEST_CHUNK = 12  # of a PNG: to cut out fewer bytes is to break one
Span = tuple[int, int]


class Mutation(NamedTuple):
    """A way to damage a file of one of these kinds, or of any."""

    apply: Callable[[Random, Valid], bytes]
    exact: bool
    kinds: tuple[str, ...] = ()


class Case(NamedTuple):
    """A damaged file."""

    original: Valid
    mutation: str
    content: bytes
    exact: bool  # it is the original's pixels or nothing


def make_case(seed: int, number: int) -> Case:
    """The damaged file of this number, the same one each time; the formats take turns."""
    rng, kind = Random(f"{seed}/{number}"), KINDS[number % len(KINDS)]
    file = rng.choice([file for file in corpus() if file.kind == kind])
    name = rng.choice([name for name, way in MUTATIONS.items() if kind in (way.kinds or KINDS)])
    content = MUTATIONS[name].apply(rng, file)
    return Case(file, name, content, MUTATIONS[name].exact and kind in CHECKSUMMED)


def flip_bits(rng: Random, file: Valid) -> bytes:
    content = bytearray(file.content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def change_bytes(rng: Random, file: Valid) -> bytes:
    content = bytearray(file.content)
    for _ in range(rng.choice((1, 2, 4, 32))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def truncate(rng: Random, file: Valid) -> bytes:
    return file.content[: rng.randrange(len(file.content))]


def insert(rng: Random, file: Valid) -> bytes:
    at, count = rng.randrange(len(file.content) + 1), rng.choice((1, 2, 16, 500))
    new = bytes(count) if rng.random() < 0.3 else rng.randbytes(count)
    return file.content[:at] + new + file.content[at:]


def delete(rng: Random, file: Valid) -> bytes:
    at = rng.randrange(len(file.content))
    return file.content[:at] + file.content[at + rng.randrange(1, SHORTEST_CHUNK) :]


def set_integer(rng: Random, file: Valid) -> bytes:
    """One of the numbers in the headers, or somewhere near the beginning, as large, small or negative as it can be."""
    content, size = bytearray(file.content), rng.choice((1, 2, 4))
    heads = [start + rng.randrange(16) for start, _ in spans(file)]
    at = rng.choice([*heads, rng.randrange(64)]) % max(1, len(content) - size)
    value = rng.choice((0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1, rng.randrange(256)))
    content[at : at + size] = value.to_bytes(size, rng.choice(("big", "little")))
    return bytes(content)


def duplicate_part(rng: Random, file: Valid) -> bytes:
    parts = _parts(file)
    at = rng.randrange(len(parts))
    return b"".join([*parts[:at], parts[at] * rng.choice((2, 2, 3, 100)), *parts[at + 1 :]])


def reorder_parts(rng: Random, file: Valid) -> bytes:
    parts = _parts(file)
    a, b = rng.randrange(len(parts)), rng.randrange(len(parts))
    parts[a], parts[b] = parts[b], parts[a]
    return b"".join(parts)


def remove_part(rng: Random, file: Valid) -> bytes:
    parts = _parts(file)
    parts.pop(rng.randrange(len(parts)))
    return b"".join(parts)


def splice(rng: Random, file: Valid) -> bytes:
    """The beginning of a file and the end of another, cut between parts or anywhere."""
    other = rng.choice([other for other in corpus() if other.kind == file.kind or rng.random() < 0.1])
    if rng.random() < 0.5:
        return file.content[: rng.randrange(len(file.content))] + other.content[rng.randrange(len(other.content)) :]
    return b"".join(_parts(file)[: rng.randrange(9)] + _parts(other)[rng.randrange(9) :])


def checksummed(rng: Random, file: Valid) -> bytes:
    """Damage to the data of a PNG's chunk, its packed pixels among them, under a right checksum."""
    parts = _parts(file)
    at = rng.randrange(1, len(parts))
    name, data = parts[at][4:8], parts[at][8:-4]
    if name == b"IDAT" and rng.random() < 0.5:
        parts[at] = chunk(name, zlib.compress(_damaged(rng, zlib.decompress(data)), 1))
    else:
        parts[at] = chunk(name, _damaged(rng, data))
    return b"".join(parts)


def repacked(rng: Random, file: Valid) -> bytes:
    """Damage to what a gzip file holds, packed again."""
    return gzip.compress(_damaged(rng, gzip.decompress(file.content)), mtime=0)


ANYWHERE = (flip_bits, change_bytes, truncate, insert, delete, set_integer)


def _damaged(rng: Random, data: bytes) -> bytes:
    way = rng.choice(ANYWHERE)
    return way(rng, Valid("", "", data)) if data else rng.randbytes(4)


MUTATIONS = {
    **{way.__name__: Mutation(way, exact=True) for way in ANYWHERE},
    **{way.__name__: Mutation(way, exact=False) for way in (duplicate_part, reorder_parts, remove_part, splice)},
    "checksummed": Mutation(checksummed, exact=False, kinds=("PNG",)),
    "repacked": Mutation(repacked, exact=False, kinds=("IDX.gz",)),
}


def _parts(file: Valid) -> list[bytes]:
    return [file.content[start:end] for start, end in spans(file)]


def spans(file: Valid) -> list[Span]:
    """(start, end) of the parts that the file's format is made of, in order and without a gap."""
    starts = sorted({0, *STARTS.get(file.kind, _even_starts)(file.content)} - {len(file.content)})
    return list(zip(starts, [*starts[1:], len(file.content)], strict=True))


def _even_starts(content: bytes) -> list[int]:
    return list(range(0, len(content), max(1, len(content) // 8)))


def _png_starts(content: bytes) -> list[int]:
    starts = [len(PNG_SIGNATURE)]
    while starts[-1] < len(content):
        starts.append(starts[-1] + 12 + struct.unpack_from(">I", content, starts[-1])[0])
    return starts


def _riff_starts(content: bytes) -> list[int]:
    starts = [12]
    while starts[-1] < len(content):
        size = struct.unpack_from("<I", content, starts[-1] + 4)[0]
        starts.append(starts[-1] + 8 + size + size % 2)
    return [start for start in starts if start < len(content)]


def _jpeg_starts(content: bytes) -> list[int]:
    """Every marker but those within packed pixels."""
    return [at for at, (first, second) in enumerate(pairwise(content)) if first == 0xFF and second not in (0, 0xFF)]


def _gif_starts(content: bytes) -> list[int]:
    """The header with its palette, then every byte that may begin a block."""
    first = 13 + 3 * 2 ** ((content[10] & 7) + 1) * (content[10] >> 7)
    return [first, *(at for at in range(first, len(content)) if content[at] in b"\x21\x2c\x3b")]


STARTS: dict[str, Callable[[bytes], list[int]]] = {
    "PNG": _png_starts,
    "WEBP": _riff_starts,
    "JPEG": _jpeg_starts,
    "GIF": _gif_starts,
    "BMP": lambda content: [14, 54, struct.unpack_from("<I", content, 10)[0]],
    "IDX": lambda content: [4, 8, 4 + 4 * content[3]],
    "IDX.gz": lambda content: [10, len(content) - 8],
}
