"""Weights on their way into a graph: their precision, and how integers are rounded.

Round-to-nearest, symmetric, without zero points: the one form that ONNX Runtime fuses and
TensorRT accepts (blocks of 64 or 128 along the input axis for int4). Methods that calibrate come
with `compress/` and hand over their own integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import UnknownNameError, UserError

if TYPE_CHECKING:  # the Core ML target rounds weights without onnx installed
    from pulse_edge.export.onnx_writer import GraphWriter

BITS: Final = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "palette4": 4}
INT4_BLOCKS: Final = (128, 64)  # TensorRT takes no others; the larger is the smaller file
# The lowest that will do, since TensorRT's parsers lag behind: half-precision scales of
# DequantizeLinear came with opset 19, its blocks with 21.
_OPSETS: Final = {32: 18, 16: 18, 8: 19, 4: 21}
_CHUNK: Final = 1 << 20  # weights that are rounded at once: bounds the memory for intermediates


@dataclass(frozen=True)
class Precision:
    """How a decoder is stored and computed.

    Attributes:
        name: fp32, fp16, int8, int4 or, for Core ML only, palette4: 16 values for every 16 rows.
        bits: of the linear layers' weights.
        compute: type of activations and of the key-value cache.
    """

    name: str
    bits: int
    compute: type[np.floating]

    @property
    def table(self) -> type[np.floating]:
        """Type of what is not rounded to integers: embeddings, head, and layers that int4 does not fit."""
        return np.float32 if self.bits == 32 else np.float16

    @property
    def opset(self) -> int:
        """Of the decoder's graph."""
        return _OPSETS[self.bits]


def precision(name: str, target: str) -> Precision:
    """Return a precision for a target: Jetson and Core ML compute in fp16, ONNX Runtime on a CPU in fp32.

    Raises:
        UnknownNameError: no such precision.
        UserError: the target cannot use it.
    """
    if name not in BITS:
        raise UnknownNameError("precision", name, BITS)
    if target == "jetson" and name == "fp32":
        raise UserError("fp32 wastes a Jetson's memory and tensor cores. Use --precision fp16, int8 or int4.")
    if name == "palette4" and target != "coreml":
        raise UserError("palette4 is a format of Core ML. Use --precision int4, or --target coreml.")
    half = name == "fp16" or target == "jetson" or (target == "coreml" and name != "fp32")
    return Precision(name, BITS[name], np.float16 if half else np.float32)


def linear(
    writer: GraphWriter, x: str, name: str, weight: NDArray[np.float32], how: Precision, keep: bool = False
) -> str:
    """Add ``x @ weight.T`` to a graph.

    Args:
        writer: of the graph.
        x: the input, [..., K], in the computing type.
        name: of the layer; the output has it too.
        weight: float32 [N, K], as torch stores it.
        how: its precision.
        keep: do not round to integers whatever the precision (the head: its error is not averaged out).
    """
    matrix = weight.T
    if how.bits == 8 and not keep:
        return writer.op("MatMul", x, _quantized(writer, name, matrix, how, matrix.shape[0]), name=name)
    block = int4_block(matrix.shape)
    if how.bits == 4 and not keep and block is not None:
        return writer.op("MatMul", x, _quantized(writer, name, matrix, how, block), name=name)
    stored = writer.weight(f"{name}.weight", matrix, how.table)
    if how.table is not how.compute:
        stored = writer.cast(stored, how.compute, f"{name}.weight/cast")
    return writer.op("MatMul", x, stored, name=name)


def _quantized(
    writer: GraphWriter, name: str, matrix: NDArray[np.float32], how: Precision, block: int
) -> str:
    """Add a matrix [K, N] as integers and scales; return the name of the dequantised one."""
    integers, scale = quantize(matrix, block, levels=127 if how.bits == 8 else 7)
    if how.bits == 8:  # per column: ONNX Runtime fuses axis 1, and TensorRT wants the axis of the outputs
        values, scale, form = writer.weight(f"{name}.integers", integers), scale[0], {"axis": 1}
    else:
        values, form = writer.weight_int4(f"{name}.integers", integers), {"axis": 0, "block_size": block}
    scales = writer.weight(f"{name}.scale", scale, how.compute)
    return writer.op("DequantizeLinear", values, scales, name=f"{name}.weight", **form)


def int4_block(shape: tuple[int, ...]) -> int | None:
    """Return the block size for a matrix [K, N], or None where TensorRT's rules allow no int4."""
    return next((b for b in INT4_BLOCKS if shape[0] % b == 0 and shape[1] % 2 == 0), None)


def quantize(
    matrix: NDArray[np.float32], block: int, levels: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a matrix [K, N] to integers from ``-levels`` to ``levels``.

    Args:
        matrix: float32; ``block`` divides K.
        block: rows of a column that share a scale; K for one scale per column.
        levels: 127 for int8, 7 for int4.

    Returns:
        Integers int8 [K, N], and scales float32 [K / block, N] whose values float16 holds exactly, so
        that integers and scales are the same for every target.
    """
    rows, columns = matrix.shape
    integers = np.empty((rows, columns), np.int8)
    scale = np.empty((rows // block, columns), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a scale that is not finite is refused when written
        for part in _parts(rows, columns):
            blocks = matrix[:, part].reshape(rows // block, block, -1)
            scale[:, part] = _scale(np.abs(blocks).max(axis=1), levels)
            rounded = np.rint(blocks / scale[:, None, part])
            integers[:, part] = np.clip(rounded, -levels, levels).reshape(rows, -1)
    return integers, scale


def _parts(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _CHUNK // rows)
    return (slice(start, start + step) for start in range(0, columns, step))


def _scale(largest: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    # float16 at once, so that the integers fit the scale that is stored; never 0, which would divide by 0.
    return np.maximum(largest / levels, np.finfo(np.float16).tiny).astype(np.float16).astype(np.float32)
