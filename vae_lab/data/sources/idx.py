"""The IDX format of MNIST: a magic number, the dimensions, then one byte per value."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_lab.utils.errors import UsageError

_GZIP_MAGIC = b"\x1f\x8b"
_UINT8 = 0x08


def read_idx(path: Path, num_dims: int) -> Tensor:
    """Read a raw or gzipped IDX file as a uint8 tensor of `num_dims` dimensions.

    Raises UsageError, naming the file, if it cannot be read, its gzip is corrupt, its magic number is wrong or its
    length differs from its header.
    """
    content = _read(path)
    magic, header_size = bytes([0, 0, _UINT8, num_dims]), 4 + 4 * num_dims
    if content[:4] != magic:
        found = content[:4].hex() or "an empty file"
        raise _broken(path, f"its magic number is {found}", f"{magic.hex()} (bytes, {num_dims} dimensions)")
    if len(content) < header_size:
        raise _broken(path, f"it is cut short at {len(content)} bytes", f"a header of {header_size} bytes")
    shape = struct.unpack_from(f">{num_dims}I", content, 4)
    size = header_size + math.prod(shape)
    if len(content) != size:
        raise _broken(path, f"it holds {len(content)} bytes", f"{size}, as its header states {shape}")
    return torch.tensor(np.frombuffer(content, np.uint8, offset=header_size)).reshape(shape)


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        # By content, not by suffix: browsers may decompress a .gz but keep its name.
        return gzip.decompress(content) if content.startswith(_GZIP_MAGIC) else content
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error) as error:
        raise _broken(path, f"its gzip is corrupt ({error})", "an intact gzip file") from error
    except OSError as error:
        raise _broken(path, f"it cannot be read ({error.strerror})", "a readable file") from error


def _broken(path: Path, found: str, expected: str) -> UsageError:
    return UsageError(f"{path}: {found}.\nExpected {expected}.\nRemove the file, and the next run downloads it again.")
