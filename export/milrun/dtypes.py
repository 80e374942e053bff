"""The data types of MIL: how each is stored, and in which tensors it is computed.

Numbers are those of ``MIL.proto`` (``DataType``) and of the blob file (``MILBlob/Blob/BlobDataType.hpp``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from pulse_edge.errors import BundleError


@dataclass(frozen=True)
class DType:
    """One data type.

    Attributes:
        name: as MIL's ``cast`` spells it.
        code: in the program.
        blob: in the weight file; None if it is never stored there.
        bits: of one stored element.
        stored: numpy type of one element after unpacking.
        computed: torch type that holds it while a program runs. Half floats are held as float32, whose
            values the executor rounds; integers are held in 32 bits, unsigned 32 and 64 in 64.
    """

    name: str
    code: int
    blob: int | None
    bits: int
    stored: type[np.generic]
    computed: torch.dtype

    @property
    def packed(self) -> bool:
        """Whether several elements share a byte."""
        return self.bits < 8

    @property
    def floating(self) -> bool:
        """Whether its values are real numbers."""
        return issubclass(self.stored, np.floating)


_I32, _I64, _F32 = torch.int32, torch.int64, torch.float32
_ALL: Final = (
    DType("bool", 1, None, 8, np.bool_, torch.bool),
    DType("string", 2, None, 8, np.str_, torch.bool),
    DType("fp16", 10, 1, 16, np.float16, _F32),
    DType("fp32", 11, 2, 32, np.float32, _F32),
    DType("fp64", 12, None, 64, np.float64, torch.float64),
    DType("int8", 21, 4, 8, np.int8, _I32),
    DType("int16", 22, 6, 16, np.int16, _I32),
    DType("int32", 23, 14, 32, np.int32, _I32),
    DType("int64", 24, None, 64, np.int64, _I64),
    DType("int4", 25, 8, 4, np.int8, _I32),
    DType("uint8", 31, 3, 8, np.uint8, _I32),
    DType("uint16", 32, 7, 16, np.uint16, _I32),
    DType("uint32", 33, 15, 32, np.uint32, _I64),
    DType("uint64", 34, None, 64, np.uint64, _I64),
    DType("uint4", 35, 11, 4, np.uint8, _I32),
    DType("uint2", 36, 10, 2, np.uint8, _I32),
    DType("uint1", 37, 9, 1, np.uint8, _I32),
    DType("uint6", 38, 13, 6, np.uint8, _I32),
    DType("uint3", 39, 12, 3, np.uint8, _I32),
)
BY_NAME: Final = {dtype.name: dtype for dtype in _ALL}
_BY_CODE: Final = {dtype.code: dtype for dtype in _ALL}


def of_code(code: int, where: str) -> DType:
    """Return the type that a program calls ``code``.

    Raises:
        BundleError: there is none, or it is one of the 8-bit and brain floats, which no tool emits yet.
    """
    if code not in _BY_CODE:
        raise BundleError(
            f"{where} has the data type {code}, which milrun does not know. Export the model again."
        )
    return _BY_CODE[code]


@dataclass(frozen=True)
class TensorType:
    """A tensor's type as declared; None stands for a length known only when the program runs."""

    dtype: DType
    shape: tuple[int | None, ...]

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape is of the type."""
        return len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        lengths = ", ".join("?" if length is None else str(length) for length in self.shape)
        return f"{self.dtype.name} [{lengths}]"
