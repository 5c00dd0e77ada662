"""The IDX format of MNIST: a magic number, the dimensions, then one byte a value."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from vae_lab.errors import UsageError

_GZIP_MAGIC = b"\x1f\x8b"
_UINT8 = 0x08


def read_idx(path: Path, num_dims: int) -> Tensor:
    """A uint8 tensor of `num_dims` dimensions from a raw or gzipped IDX file.

    Raises UsageError, naming the file, when it cannot be read, its gzip is corrupt, its magic number is
    another or its length is not what its header says.
    """
    content = _read(path)
    header_size = 4 + 4 * num_dims
    magic = bytes([0, 0, _UINT8, num_dims])
    if content[:4] != magic:
        found = content[:4].hex() or "an empty file"
        raise _broken(path, f"its magic number is {found}", f"{magic.hex()} (bytes, {num_dims} dimensions)")
    if len(content) < header_size:
        raise _broken(path, f"it is cut short at {len(content)} bytes", f"a header of {header_size} bytes")
    shape = struct.unpack_from(f">{num_dims}I", content, 4)
    size = header_size + math.prod(shape)
    if len(content) != size:
        raise _broken(path, f"it holds {len(content)} bytes", f"{size}, as its header says {shape}")
    return _values(content, header_size).reshape(shape)


def _read(path: Path) -> bytearray:
    try:
        content = bytearray(path.read_bytes())
        # By content, not by suffix: browsers unpack a .gz and keep its name.
        return bytearray(gzip.decompress(content)) if content.startswith(_GZIP_MAGIC) else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _broken(path, f"its gzip is corrupt ({error})", "a whole gzip file") from error
    except OSError as error:
        raise _broken(path, f"it cannot be read ({error.strerror})", "a readable file") from error


def _values(content: bytearray, offset: int) -> Tensor:
    # frombuffer refuses to make an empty tensor.
    if len(content) == offset:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(content, dtype=torch.uint8, offset=offset)


def _broken(path: Path, found: str, expected: str) -> UsageError:
    return UsageError(f"{path}: {found}.\nExpected {expected}.\nRemove the file, and the next run downloads it again.")
