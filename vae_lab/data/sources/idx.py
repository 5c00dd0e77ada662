"""The IDX format of MNIST: a magic number, the dimensions, then one byte per value."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from vae_lab.data.regular_files import NotARegularFileError, file_size, open_file
from vae_lab.utils.errors import UsageError

MAX_BYTES = 2**30  # nearly twice the largest file of EMNIST
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_RATIO = 1032  # maximum expansion of deflate
_UINT8 = 0x08
_Stream = BinaryIO | gzip.GzipFile


def read_idx(path: Path, num_dims: int) -> Tensor:
    """Read a raw or gzipped IDX file as a uint8 tensor of `num_dims` dimensions.

    Unpacks at most the size stated by its header, and at most MAX_BYTES. Raises UsageError, naming the file, if it
    cannot be read, its gzip is corrupt, its magic number is wrong or its length differs from its header.
    """
    try:
        with open_file(path) as file:
            return _read(path, file, num_dims)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _broken(path, f"its gzip is corrupt ({error})", "an intact gzip file") from error
    except NotARegularFileError as error:
        raise _broken(path, f"it is {error}", "a file") from error
    except OSError as error:
        raise _broken(path, f"it cannot be read ({error.strerror})", "a readable file") from error


def _read(path: Path, file: BinaryIO, num_dims: int) -> Tensor:
    # By content, not by suffix: browsers may decompress a .gz but keep its name.
    packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    file.seek(0)
    stream: _Stream = gzip.GzipFile(fileobj=file) if packed else file
    shape = _shape(path, stream, num_dims)
    header_size = 4 + 4 * num_dims
    size, most = header_size + math.prod(shape), file_size(file) * (_GZIP_RATIO if packed else 1)
    _check_size(path, size, shape, most, exact=not packed)
    # One byte more than expected: reaching the end of the stream makes gzip verify its checksum.
    content = bytearray(stream.read(size - header_size + 1))
    if len(content) != size - header_size:
        held = header_size + len(content)
        more = " or more" if held > size else ""
        raise _broken(path, f"it holds {held} bytes{more}", f"{size}, as its header states {shape}")
    # frombuffer cannot create an empty tensor.
    values = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
    return values.reshape(shape)


def _shape(path: Path, stream: _Stream, num_dims: int) -> tuple[int, ...]:
    """Read the dimensions from the header."""
    header_size = 4 + 4 * num_dims
    header = stream.read(header_size)
    magic = bytes([0, 0, _UINT8, num_dims])
    if header[:4] != magic:
        found = header[:4].hex() or "an empty file"
        raise _broken(path, f"its magic number is {found}", f"{magic.hex()} (bytes, {num_dims} dimensions)")
    if len(header) < header_size:
        raise _broken(path, f"it is cut short at {len(header)} bytes", f"a header of {header_size} bytes")
    return struct.unpack_from(f">{num_dims}I", header, 4)


def _check_size(path: Path, size: int, shape: tuple[int, ...], most: int, exact: bool) -> None:
    """Raise if the header states more than MAX_BYTES or than the file can hold; before any data is read."""
    if size > MAX_BYTES:
        raise _broken(path, f"its header states {shape}, {size} bytes", f"{MAX_BYTES} bytes at most")
    if size > most or (exact and size != most):
        held = f"it holds {most} bytes" if exact else f"it is packed and holds {most} bytes at most"
        raise _broken(path, held, f"{size}, as its header states {shape}")


def _broken(path: Path, found: str, expected: str) -> UsageError:
    return UsageError(f"{path}: {found}.\nExpected {expected}.\nRemove the file, and the next run downloads it again.")
