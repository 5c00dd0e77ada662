"""The checksums of a PNG: Pillow leaves those of the pixels unread, so that one wrong bit could be another picture."""

from __future__ import annotations

import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def check_png(content: bytes) -> None:
    """Raise ValueError unless every chunk up to the last, IEND, is there with its own checksum (PNG, 5.3)."""
    view, start, kind = memoryview(content), len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        if len(content) < start + 12:
            raise ValueError(f"the file is cut short at {len(content)} bytes")
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        if len(content) < end:
            raise ValueError(f"the file is cut short at {len(content)} bytes, within chunk {ascii(kind)[1:]}")
        if zlib.crc32(view[start + 4 : end - 4]) != struct.unpack_from(">I", content, end - 4)[0]:
            raise ValueError(f"the checksum of chunk {ascii(kind)[1:]} is wrong")
        start = end
