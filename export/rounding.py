"""How numbers change on their way from a checkpoint into a graph: types, and rounding to integers.

Everything works on a few rows at a time in the processor's cache. bfloat16, which numpy lacks, comes as
its 16 bits: they are the upper half of a float32, and all but the rarest are turned into float16 by
shifting. Rounding to integers is to the nearest, symmetric, without zero points.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_MAGIC: Final = np.float32(3 << 22)  # adding it leaves a float32's value, rounded to even, in its low bits
_MAGNITUDE: Final = 0x7FFF
_NORMAL_FROM: Final = 113 << 7  # bfloat16 of 2**-14, float16's smallest normal number
_NORMAL_BELOW: Final = 143 << 7  # bfloat16 of 2**16, which float16 cannot hold
_TINY: Final = np.finfo(np.float16).tiny


def to_float32(raw: NDArray[Any], kind: str) -> NDArray[np.float32]:
    """Values as float32; ``kind`` is ``BF16`` (16 bits in uint16), ``F16`` or ``F32``."""
    if kind != "BF16":
        return raw.astype(np.float32, copy=False)
    wide = np.zeros(raw.shape, np.uint32)
    wide.view(np.uint16).reshape(*raw.shape, 2)[..., _upper()] = raw
    return wide.view(np.float32)


def to_float16(raw: NDArray[Any], kind: str) -> NDArray[np.float16]:
    """Values as float16, rounded to the nearest; too large ones become infinite, as in a plain cast."""
    if kind == "F16":
        return raw.astype(np.float16, copy=False)
    if kind == "F32":
        with np.errstate(over="ignore"):
            return raw.astype(np.float16)
    magnitude = np.bitwise_and(raw, _MAGNITUDE)
    half = np.subtract(magnitude, _NORMAL_FROM - (1 << 7))
    np.left_shift(half, 3, out=half)
    np.bitwise_or(half, raw & 0x8000, out=half)
    rare = (magnitude < _NORMAL_FROM) | (magnitude >= _NORMAL_BELOW)
    if rare.any():
        with np.errstate(over="ignore"):
            half[rare] = to_float32(raw[rare], "BF16").astype(np.float16).view(np.uint16)
    return half.view(np.float16)


def round_rows(
    values: NDArray[np.float32], block: int, levels: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Round rows [n, K] to integers from ``-levels`` to ``levels``.

    Args:
        values: float32, finite; overwritten.
        block: neighbours in a row that share a scale; it divides K.
        levels: 127 for int8, 7 for int4.

    Returns:
        The integers' low bytes [n, K], and scales float32 [n, K / block] whose values float16 holds
        exactly, so that integers and scales are the same for every target. A scale is infinite where
        float16 cannot hold it, and NaN where a value is.
    """
    n, columns = values.shape
    blocks = values.reshape(n, columns // block, block)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = float16_scale(np.abs(blocks).max(-1), levels)
        np.divide(blocks, scale[..., None], out=blocks)
        np.add(values, _MAGIC, out=values)
    low = values.view(np.uint8).reshape(n, columns, 4)[..., 0 if _upper() else 3]
    return np.ascontiguousarray(low), scale


def float16_scale(largest: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    """Scale of blocks by their largest magnitude: a float16 as float32, never 0, which would divide by 0."""
    scale = np.maximum(largest / np.float32(levels), _TINY)
    with np.errstate(over="ignore"):
        return scale.astype(np.float16).astype(np.float32)


def pack_pairs(low: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put rows 2i and 2i + 1 of int4 values into one byte, the first in the low half: [n, K] -> [n/2, K]."""
    packed = np.bitwise_and(low[0::2], 0x0F)
    np.bitwise_or(packed, np.left_shift(low[1::2], 4), out=packed)
    return packed


def _upper() -> int:
    """Which of a float32's two 16-bit halves in memory holds its sign."""
    return 1 if sys.byteorder == "little" else 0
