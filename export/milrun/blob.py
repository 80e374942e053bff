"""The weight file of a package (``weight.bin``), memory-mapped.

Layout (coremltools, ``MILBlob/Blob/StorageFormat.hpp``, version 2), all little-endian: a header of 64 bytes
(uint32 count, uint32 version), then for each array, at the offset that the program names, 64 bytes of
metadata (uint32 0xDEADBEEF, uint32 type, uint64 bytes, uint64 offset of the data, uint64 unused bits of the
last byte), and the data, aligned to 64 bytes. Elements below a byte are packed from the lowest bit up.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import BundleError
from pulse_edge.export.milrun.dtypes import DType

_HEADER: Final = struct.Struct("<II")
_ENTRY: Final = struct.Struct("<IIQQQ")
_BLOCK: Final = 64
_SENTINEL: Final = 0xDEADBEEF
_VERSION: Final = 2


class BlobFile:
    """A weight file, opened for reading; its arrays are views of the mapped file where they can be.

    Args:
        path: of the file.

    Raises:
        BundleError: it is missing, unreadable, too short or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # copy on write: the arrays may be given to torch, and the file never changes
            self._bytes = np.asarray(np.memmap(path, np.uint8, "c"))
        except (OSError, ValueError) as error:  # numpy says ValueError to an empty file
            raise BundleError(f"{path} cannot be read ({error}). Copy the package again.") from error
        if len(self._bytes) < _BLOCK:
            raise self._damaged("it is shorter than its header")
        _, version = _HEADER.unpack(self._bytes[: _HEADER.size].tobytes())
        if version != _VERSION:
            raise self._damaged(f"its version is {version}, not {_VERSION}")

    def read(self, offset: int, dtype: DType, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the array whose metadata lie at ``offset``, of type ``dtype.stored``.

        Raises:
            BundleError: the file is cut short or damaged there, or holds another type or size.
        """
        if not 0 <= offset <= len(self._bytes) - _BLOCK:
            raise self._damaged(f"it ends before the weight at byte {offset}")
        sentinel, code, size, start, _ = _ENTRY.unpack(self._bytes[offset : offset + _ENTRY.size].tobytes())
        if sentinel != _SENTINEL:
            raise self._damaged(f"no weight begins at byte {offset}")
        # a boolean has no type of its own in the file and is stored as a byte
        if code != dtype.blob and not (dtype.name == "bool" and code in (3, 4)):
            raise self._damaged(f"the weight at byte {offset} is of type {code}, not {dtype.name}")
        count = math.prod(shape)
        if size != -(-count * dtype.bits // 8):
            raise self._damaged(f"the weight at byte {offset} has {size} bytes for {count} {dtype.name}")
        if start + size > len(self._bytes):
            raise self._damaged(f"it ends inside the weight at byte {offset}")
        return unpack(self._bytes[start : start + size], dtype, count).reshape(shape)

    def _damaged(self, why: str) -> BundleError:
        return BundleError(f"{self.path} is damaged: {why}. Copy or export the package again.")


def unpack(raw: NDArray[np.uint8], dtype: DType, count: int) -> NDArray[Any]:
    """Return ``count`` elements out of their bytes, as ``dtype.stored``."""
    if not dtype.packed:
        return raw.view(dtype.stored)
    if 8 % dtype.bits == 0:
        mask = np.uint8((1 << dtype.bits) - 1)
        parts = [(raw >> np.uint8(shift)) & mask for shift in range(0, 8, dtype.bits)]
        values = np.stack(parts, axis=-1).reshape(-1)[:count]
    else:  # 3 and 6 bits cross the borders of bytes
        bits = np.unpackbits(raw, bitorder="little")[: count * dtype.bits].reshape(count, dtype.bits)
        values = np.packbits(bits, axis=-1, bitorder="little").reshape(-1)
    if issubclass(dtype.stored, np.signedinteger):
        sign = np.uint8(1 << (dtype.bits - 1))
        values = ((values ^ sign).astype(np.int8) - np.int8(sign)).astype(np.int8)
    return values.astype(dtype.stored, copy=False)
