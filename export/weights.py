"""Weights on their way into a graph: their precision, and the layer that multiplies by them.

Integers are symmetric, without zero points: the one form that ONNX Runtime fuses and TensorRT accepts
(blocks of 64 or 128 along the input axis for int4). Methods that calibrate come with `compress/` and hand
over their own integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import UnknownNameError, UserError
from pulse_edge.export.onnx_writer import INT4, GraphWriter, Kind, Place, Sink
from pulse_edge.export.rounding import pack_pairs, round_rows, to_float16, to_float32

BITS: Final = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
INT4_BLOCKS: Final = (128, 64)  # TensorRT takes no others; the larger is the smaller file
PROFILES: Final = ("trt", "trt10.15", "ort")
# The lowest that will do, since TensorRT's parsers lag behind: half-precision scales of
# DequantizeLinear came with opset 19, its blocks with 21.
_OPSETS: Final = {32: 18, 16: 18, 8: 19, 4: 21}
_FUSED_OPSET: Final = 23  # Attention, RMSNormalization and RotaryEmbedding
PANEL: Final = 96 << 20  # bytes of a matrix that are put together before they are written
_CHUNK: Final = 1 << 20  # weights that are read and rounded at once: they fit a cache


class Weights(Protocol):
    """Weights by canonical name, read by the row; ``model.shards.Shards`` is one."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""

    def kind(self, name: str) -> str:
        """``BF16``, ``F16`` or ``F32``; bfloat16 comes from :meth:`rows` as its 16 bits in uint16."""

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Entries ``start`` to ``stop`` along the first axis."""


@dataclass(frozen=True)
class Precision:
    """How a decoder is stored and computed.

    Attributes:
        name: fp32, fp16, int8 or int4.
        bits: of the linear layers' weights.
        compute: type of activations and of the key-value cache.
        profile: ``trt`` writes attention, norms and rotary embedding in primitive operators;
            ``trt10.15`` and ``ort`` use those of opset 23.
    """

    name: str
    bits: int
    compute: type[np.floating]
    profile: str = "trt"

    @property
    def table(self) -> type[np.floating]:
        """Type of what is not rounded to integers: embeddings, head, and layers that int4 does not fit."""
        return np.float32 if self.bits == 32 else np.float16

    @property
    def fused(self) -> bool:
        """Whether the decoder uses the operators of opset 23."""
        return self.profile != "trt"

    @property
    def opset(self) -> int:
        """Of the decoder's graph."""
        return _FUSED_OPSET if self.fused else _OPSETS[self.bits]


def precision(name: str, target: str, profile: str = "trt") -> Precision:
    """Return a precision for a target: Jetson computes in fp16, ONNX Runtime on a CPU in fp32.

    Raises:
        UnknownNameError: no such precision or profile.
        UserError: the target cannot use it.
    """
    if name not in BITS:
        raise UnknownNameError("precision", name, BITS)
    if profile not in PROFILES:
        raise UnknownNameError("profile", profile, PROFILES)
    if target == "jetson" and name == "fp32":
        raise UserError("fp32 wastes a Jetson's memory and tensor cores. Use --precision fp16, int8 or int4.")
    if target == "jetson" and profile == "ort":
        raise UserError(
            "The profile ort is for ONNX Runtime. Use --profile trt or trt10.15, or --target onnx."
        )
    half = name == "fp16" or target == "jetson"
    return Precision(name, BITS[name], np.float16 if half else np.float32, profile)


def linear(writer: GraphWriter, x: str, name: str, weights: Weights, key: str, how: Precision) -> str:
    """Add ``x @ weight.T`` to a graph.

    Args:
        writer: of the graph.
        x: the input, [..., K], in the computing type.
        name: of the layer; the output has it too.
        weights: of the checkpoint.
        key: canonical name of the weight [N, K].
        how: its precision; int4 falls back to float16 where TensorRT's rules allow none.
    """
    n, k = weights.shape(key)
    if how.bits == 8:
        return writer.op("MatMul", x, _quantized(writer, name, weights, key, how, k), name=name)
    block = int4_block((k, n))
    if how.bits == 4 and block is not None:
        return writer.op("MatMul", x, _quantized(writer, name, weights, key, how, block), name=name)
    place = (f"{name}.weight", how.table, (k, n))
    stored = writer.weights(name, [place], lambda sinks: _fill_transposed(weights, key, how.table, sinks[0]))[
        0
    ]
    if how.table is not how.compute:
        stored = writer.cast(stored, how.compute, f"{name}.weight/cast")
    return writer.op("MatMul", x, stored, name=name)


def rows(writer: GraphWriter, name: str, weights: Weights, key: str, kind: type[np.floating]) -> Place:
    """Store a weight as the checkpoint has it, row by row; return its place."""
    shape = weights.shape(key)

    def fill(sinks: Sequence[Sink]) -> None:
        width = int(np.prod(shape[1:], dtype=np.int64))
        for start, stop in _steps(0, shape[0], width):
            part = _cast(weights.rows(key, start, stop), weights.kind(key), kind)
            sinks[0].write(start * width * np.dtype(kind).itemsize, part)

    writer.weights(name, [(name, kind, shape)], fill)
    return writer.chunks[-1].places[0]


def vector(writer: GraphWriter, name: str, weights: Weights, key: str, kind: type[np.floating]) -> str:
    """Store a small weight, such as a bias, as the checkpoint has it; return its name."""
    return rows(writer, name, weights, key, kind).name


def int4_block(shape: tuple[int, ...]) -> int | None:
    """Return the block size for a matrix [K, N], or None where TensorRT's rules allow no int4."""
    return next((b for b in INT4_BLOCKS if shape[0] % b == 0 and shape[1] % 2 == 0), None)


def _quantized(writer: GraphWriter, name: str, weights: Weights, key: str, how: Precision, block: int) -> str:
    """Add a matrix [K, N] as integers and scales; return the name of the dequantised one."""
    n, k = weights.shape(key)
    kind: Kind
    scales: tuple[int, ...]
    if how.bits == 8:  # per column: ONNX Runtime fuses axis 1, and TensorRT wants the axis of the outputs
        kind, scales, form = np.int8, (n,), {"axis": 1}
    else:
        kind, scales, form = INT4, (k // block, n), {"axis": 0, "block_size": block}

    def fill(sinks: Sequence[Sink]) -> None:
        _fill_quantized(weights, key, how, block, sinks)

    tensors = [(f"{name}.integers", kind, (k, n)), (f"{name}.scale", how.compute, scales)]
    return writer.op("DequantizeLinear", *writer.weights(name, tensors, fill), name=f"{name}.weight", **form)


def _fill_quantized(weights: Weights, key: str, how: Precision, block: int, sinks: Sequence[Sink]) -> None:
    n, k = weights.shape(key)
    per_byte = 2 if how.bits == 4 else 1
    scale = np.empty((k // block, n), np.float32)

    def convert(start: int, stop: int) -> NDArray[Any]:
        values = to_float32(weights.rows(key, start, stop), weights.kind(key))
        low, part = round_rows(values, block, 7 if how.bits == 4 else 127)
        scale[:, start:stop] = part.T
        return pack_pairs(low) if how.bits == 4 else low

    _fill_panels(k, n, per_byte, np.dtype(np.uint8), convert, sinks[0])
    sinks[1].write(0, scale.astype(how.compute))


def _fill_transposed(weights: Weights, key: str, kind: type[np.floating], sink: Sink) -> None:
    n, k = weights.shape(key)

    def convert(start: int, stop: int) -> NDArray[Any]:
        return _cast(weights.rows(key, start, stop), weights.kind(key), kind)

    _fill_panels(k, n, 1, np.dtype(kind), convert, sink)


def _fill_panels(
    k: int,
    n: int,
    per_item: int,
    dtype: np.dtype[Any],
    convert: Callable[[int, int], NDArray[Any]],
    sink: Sink,
) -> None:
    """Write the transpose [K, N] of what ``convert`` makes of the rows [N, K], as many columns at a time
    as memory may hold; ``per_item`` rows are in one item."""
    width = max(2, PANEL // (k * dtype.itemsize) // 2 * 2) * per_item
    panel = np.empty((k, min(n, width) // per_item), dtype)
    for first in range(0, n, width):
        last = min(first + width, n)
        for start, stop in _steps(first, last, k):
            part = slice((start - first) // per_item, (stop - first) // per_item)
            panel[:, part] = convert(start, stop).T
        sink.write_columns(panel[:, : (last - first) // per_item], first // per_item, n // per_item)


def _steps(start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
    """Cut rows of a width into pieces that fit the cache; all but the last have an even number."""
    step = max(2, _CHUNK // max(width, 1) // 2 * 2)
    return ((first, min(first + step, stop)) for first in range(start, stop, step))


def _cast(raw: NDArray[Any], kind: str, to: type[np.floating]) -> NDArray[Any]:
    return to_float16(raw, kind) if to is np.float16 else to_float32(raw, kind)
