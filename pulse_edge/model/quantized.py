"""The one form in which a checkpoint holds integer weights; every export target takes these integers.

In the safetensors of a checkpoint, a weight ``X.weight`` of shape [N, K] may stand as

- ``X.weight.integers``: int8 [N, K] (8 bits), or uint8 [N, K / 2] (4 bits: two's complement nibbles, the
  lower one first, as ONNX packs them along K),
- ``X.weight.scale``: float16 [N, G], each scale for K / G neighbours of a row,
- ``X.weight.zero``: int8 [N, G], only where the rounding is asymmetric.

The weight is ``(integers - zero) * scale``. Bits and group are read off dtype and shapes, so that nothing can
disagree with them. Symmetric groups of 64 or 128 along K are what TensorRT takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import CheckpointError

INTEGERS: Final = ".integers"
SCALE: Final = ".scale"
ZERO: Final = ".zero"
LEVELS: Final = {8: 127, 4: 7}  # of symmetric rounding, which leaves the lowest integer unused


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix as integers.

    Attributes:
        bits: 8 or 4.
        integers: int8 [N, K]; those of 4 bits are from -8 to 7.
        scale: float16 [N, G]; G divides K.
        zero: int8 [N, G], or None where the rounding is symmetric.
    """

    bits: int
    integers: NDArray[np.int8]
    scale: NDArray[np.float16]
    zero: NDArray[np.int8] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K), as torch stores the weight of a linear layer."""
        return self.integers.shape[0], self.integers.shape[1]

    @property
    def group(self) -> int:
        """Neighbours of a row that share a scale; K where a row has one scale."""
        return int(self.shape[1] // self.scale.shape[1])

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weight that the integers stand for, float32 [N, K]."""
        rows, columns = self.shape
        blocks = self.integers.reshape(rows, -1, self.group).astype(np.float32)
        if self.zero is not None:
            blocks -= self.zero[..., None]
        blocks *= self.scale[..., None].astype(np.float32)
        return blocks.reshape(rows, columns)

    def stored(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the arrays that a checkpoint holds instead of the weight ``name``."""
        arrays: dict[str, NDArray[Any]] = {
            name + INTEGERS: pack_int4(self.integers) if self.bits == 4 else self.integers,
            name + SCALE: self.scale,
        }
        return arrays if self.zero is None else {**arrays, name + ZERO: self.zero}


def pack_int4(integers: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack integers from -8 to 7, int8 [N, K] with an even K: uint8 [N, K / 2], the lower nibble first."""
    nibbles = integers.view(np.uint8) & np.uint8(0x0F)
    return np.asarray(nibbles[:, 0::2] | (nibbles[:, 1::2] << 4), np.uint8)


def unpack_int4(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Undo :func:`pack_int4`."""
    integers = np.empty((packed.shape[0], 2 * packed.shape[1]), np.int8)
    integers[:, 0::2] = (packed << 4).view(np.int8) >> 4
    integers[:, 1::2] = packed.view(np.int8) >> 4
    return integers


def quantized_names(names: Mapping[str, Any]) -> list[str]:
    """Return the names of the weights that stand as integers among a checkpoint's names."""
    return [name.removesuffix(INTEGERS) for name in names if name.endswith(INTEGERS)]


def quantized_weight(name: str, arrays: Mapping[str, NDArray[Any]]) -> QuantizedWeight:
    """Read a weight that stands as integers.

    Args:
        name: of the weight.
        arrays: of the checkpoint, by name; only those of this weight are touched.

    Raises:
        CheckpointError: a part is missing, or of a dtype or shape that this form does not have.
    """
    if name + SCALE not in arrays:
        raise CheckpointError(f"{name} has integers but no scale. Quantise or download the checkpoint again.")
    integers, scale, zero = arrays[name + INTEGERS], arrays[name + SCALE], arrays.get(name + ZERO)
    bits = {np.dtype(np.int8): 8, np.dtype(np.uint8): 4}.get(integers.dtype)
    fits = bits is not None and integers.ndim == scale.ndim == 2 and scale.dtype == np.float16
    if fits and bits == 4:
        integers = unpack_int4(integers)
    fits = fits and integers.shape[0] == scale.shape[0] and scale.shape[1] > 0
    fits = fits and integers.shape[1] % scale.shape[1] == 0
    fits = fits and (zero is None or (zero.dtype == np.int8 and zero.shape == scale.shape))
    if bits is None or not fits:
        raise CheckpointError(
            f"{name} stands as integers in a form that is unknown here. Update pulse-edge, or quantise again."
        )
    return QuantizedWeight(bits, integers, scale, zero)
