"""Write scalars as TensorBoard reads them, without TensorBoard.

The format (TensorFlow's ``record_writer.h`` and ``event.proto``): records of a length (uint64), its
checksum, a serialised ``Event`` and its checksum; a checksum is CRC-32C, rotated and offset. An Event has
wall_time = 1 (double), step = 2 (int64), file_version = 3 (text) and summary = 5, whose values = 1 have
tag = 1 (text) and simple_value = 2 (float).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_POLYNOMIAL: Final = 0x82F63B78  # Castagnoli's, reflected


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE: Final = _table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of some bytes (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class EventFile:
    """A TensorBoard file of scalars, begun anew.

    Args:
        folder: where it goes; TensorBoard shows each folder as a run.
        started: seconds since 1970, part of the file's name.
    """

    def __init__(self, folder: Path, started: float) -> None:
        self.path = folder / f"events.out.tfevents.{int(started):010d}.pulse-edge"
        self.path.write_bytes(_record(_event(started, 0, _bytes(3, b"brain.Event:2"))))

    def write(self, step: int, values: Mapping[str, float], time: float) -> None:
        """Append scalars.

        Args:
            step: of the training.
            values: by tag, e.g. ``"train/loss"``.
            time: seconds since 1970.
        """
        summary = b"".join(
            _bytes(1, _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
            for tag, value in values.items()
        )
        with self.path.open("ab") as stream:
            stream.write(_record(_event(time, step, _bytes(5, summary))))


def _event(time: float, step: int, content: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", time) + b"\x10" + _varint(step) + content


def _bytes(field: int, content: bytes) -> bytes:
    """A field of wire type 2."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _masked(length) + content + _masked(content)


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
