"""Weights on their way into a graph: their precision, and how integers are rounded.

Round-to-nearest, symmetric, without zero points: the one form that ONNX Runtime fuses and
TensorRT accepts (blocks of 64 or 128 along the input axis for int4). Methods that calibrate come
with `compress/` and hand over their own integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import UnknownNameError, UserError
from pulse_edge.export.onnx_writer import GraphWriter

INT4_BLOCKS: Final = (128, 64)  # TensorRT takes no others; the larger is the smaller file


@dataclass(frozen=True)
class Precision:
    """How a decoder is stored and computed.

    Attributes:
        name: fp32, fp16, int8 or int4.
        bits: of the linear layers' weights.
        compute: type of activations and of the key-value cache.
    """

    name: str
    bits: int
    compute: type[np.floating]


def precision(name: str, target: str) -> Precision:
    """Return a precision for a target: Jetson computes in fp16, ONNX Runtime on a CPU in fp32.

    Raises:
        UnknownNameError: no such precision.
        UserError: the target cannot use it.
    """
    bits = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
    if name not in bits:
        raise UnknownNameError("precision", name, bits)
    if target == "jetson" and name == "fp32":
        raise UserError("fp32 wastes a Jetson's memory and tensor cores. Use --precision fp16, int8 or int4.")
    half = name == "fp16" or (target == "jetson" and name != "fp32")
    return Precision(name, bits[name], np.float16 if half else np.float32)


def linear(
    writer: GraphWriter, x: str, name: str, weight: NDArray[np.float32], how: Precision, keep: bool = False
) -> str:
    """Add ``x @ weight.T`` to a graph.

    Args:
        writer: of the graph.
        x: the input, [..., K].
        name: of the layer; the output has it too.
        weight: float32 [N, K], as torch stores it.
        how: its precision.
        keep: store in the computing type whatever the precision (the head: its error is not averaged out).
    """
    matrix = weight.T
    block = int4_block(matrix.shape) if how.bits == 4 else None
    if how.bits >= 16 or keep or (how.bits == 4 and block is None):
        stored = writer.weight(f"{name}.weight", matrix.astype(how.compute))
    elif block is None:
        integers, scale = quantize_int8(matrix)
        stored = writer.op(
            "DequantizeLinear",
            writer.weight(f"{name}.integers", integers),
            writer.weight(f"{name}.scale", scale.astype(how.compute)),
            name=f"{name}.weight",
            axis=1,
        )
    else:
        integers, scale = quantize_int4(matrix, block)
        stored = writer.op(
            "DequantizeLinear",
            writer.weight_int4(f"{name}.integers", integers),
            writer.weight(f"{name}.scale", scale.astype(how.compute)),
            name=f"{name}.weight",
            axis=0,
            block_size=block,
        )
    return writer.op("MatMul", x, stored, name=name)


def int4_block(shape: tuple[int, ...]) -> int | None:
    """Return the block size for a matrix [K, N], or None where TensorRT's rules allow no int4."""
    return next((b for b in INT4_BLOCKS if shape[0] % b == 0 and shape[1] % 2 == 0), None)


def quantize_int8(matrix: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a matrix [K, N] to int8 with one scale per column: int8 [K, N], float32 [N]."""
    scale = _scale(np.abs(matrix).max(axis=0), 127)
    return np.clip(np.rint(matrix / scale), -127, 127).astype(np.int8), scale


def quantize_int4(matrix: NDArray[np.float32], block: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a matrix [K, N] to -7..7 with a scale per block and column: int8 [K, N], float32 [K/block, N]."""
    blocks = matrix.reshape(-1, block, matrix.shape[1])
    scale = _scale(np.abs(blocks).max(axis=1), 7)
    integers = np.clip(np.rint(blocks / scale[:, None]), -7, 7).astype(np.int8)
    return integers.reshape(matrix.shape), scale


def _scale(largest: NDArray[np.float32], levels: int) -> NDArray[np.float32]:
    # Rounded to half precision at once, so that the integers fit the scale that is stored.
    scale = np.maximum(largest / levels, np.finfo(np.float16).tiny).astype(np.float16)
    return scale.astype(np.float32)
