"""Weights of linear layers in an ONNX graph: cast, transposed, rounded and streamed, a panel at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.export.onnx_writer import INT4, GraphWriter, Kind, Place, Sink
from pulse_edge.export.rounding import pack_pairs, round_rows, to_float16, to_float32
from pulse_edge.export.weights import Precision, Weights, int4_block
from pulse_edge.model.shards import Form

PANEL: Final = 96 << 20  # bytes of a matrix that are put together before they are written
_CHUNK: Final = 1 << 20  # weights that are read and rounded at once: they fit a cache


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
    form = chosen_form(weights, key, how)
    if form is not None:
        return writer.op("MatMul", x, _quantized(writer, name, weights, key, how, form), name=name)
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
        for start, stop in steps(0, shape[0], width):
            part = _cast(weights.rows(key, start, stop), weights.kind(key), kind)
            sinks[0].write(start * width * np.dtype(kind).itemsize, part)

    writer.weights(name, [(name, kind, shape)], fill)
    return writer.chunks[-1].places[0]


def integer_rows(
    writer: GraphWriter, name: str, weights: Weights, key: str, how: Precision
) -> tuple[Place, ...]:
    """Store a table [V, H] of 8 bits as it is; return the places of its integers and scales [V]."""
    n, k = weights.shape(key)

    def fill(sinks: Sequence[Sink]) -> None:
        for start, stop in steps(0, n, k):
            part = weights.integers(key, start, stop)
            sinks[0].write(start * k, part.integers)
            scale = part.scale[:, 0].astype(how.compute)
            sinks[1].write(start * scale.itemsize, scale)

    writer.weights(name, [(f"{name}.integers", np.int8, (n, k)), (f"{name}.scale", how.compute, (n,))], fill)
    return tuple(writer.chunks[-1].places)


def holds_table(weights: Weights, key: str, how: Precision) -> bool:
    """Say whether a table of the checkpoint is stored as its 8-bit integers, with a scale for every row.

    TensorRT takes no such table: its rows would be unpacked into memory. There it is stored as float16.
    """
    form = weights.form(key) if how.given and how.compute is np.float32 else None
    return form is not None and form.bits == 8 and form.group == form.shape[1] and not form.zero


def vector(writer: GraphWriter, name: str, weights: Weights, key: str, kind: type[np.floating]) -> str:
    """Store a small weight, such as a bias, as the checkpoint has it; return its name."""
    return rows(writer, name, weights, key, kind).name


def chosen_form(weights: Weights, key: str, how: Precision) -> Form | None:
    """How a linear layer's weight is stored as integers, or None where it stays floating point."""
    if how.given:
        given = weights.form(key)
        return None if given is None or (given.bits == 4 and given.shape[0] % 2) else given
    n, k = weights.shape(key)
    if how.bits == 8:
        return Form(8, k, False, (n, k))
    block = int4_block((k, n)) if how.bits == 4 else None
    return None if block is None else Form(4, block, False, (n, k))


def _quantized(writer: GraphWriter, name: str, weights: Weights, key: str, how: Precision, form: Form) -> str:
    """Add a matrix [K, N] as integers and scales; return the name of the dequantised one."""
    attributes = {"axis": 0, "block_size": form.group}
    if by_column(form):  # ONNX Runtime fuses axis 1, and TensorRT wants the axis of the outputs
        attributes = {"axis": 1}
    names = integers(writer, name, weights, key, how, form)
    return writer.op("DequantizeLinear", *names, name=f"{name}.weight", **attributes)


def by_column(form: Form) -> bool:
    """Whether a weight [N, K] is 8-bit integers with a scale for each row: a column of the matrix [K, N]."""
    return form.bits == 8 and form.group == form.shape[1]


def integers(
    writer: GraphWriter, name: str, weights: Weights, key: str, how: Precision, form: Form
) -> list[str]:
    """Store a matrix [K, N] as integers; return their name, that of the scales, and of zero points if any."""
    n, k = form.shape
    kind: Kind = np.int8 if form.bits == 8 else INT4
    blocks = (n,) if by_column(form) else (k // form.group, n)
    tensors = [(f"{name}.integers", kind, (k, n)), (f"{name}.scale", how.compute, blocks)]
    if form.zero:
        tensors.append((f"{name}.zero", kind, blocks))

    def fill(sinks: Sequence[Sink]) -> None:
        _fill_quantized(weights, key, how, form, sinks)

    return writer.weights(name, tensors, fill)


def _fill_quantized(weights: Weights, key: str, how: Precision, form: Form, sinks: Sequence[Sink]) -> None:
    n, k = form.shape
    scale = np.empty((k // form.group, n), np.float32)
    zero = np.zeros(scale.shape if form.zero else (0, n), np.uint8)

    def convert(start: int, stop: int) -> NDArray[Any]:
        low, scales, zeros = read_rows(weights, key, how, form, start, stop)
        scale[:, start:stop] = scales.T
        if zeros is not None:
            zero[:, start:stop] = zeros.T
        return pack_pairs(low) if form.bits == 4 else low

    _fill_panels(k, n, 2 if form.bits == 4 else 1, np.dtype(np.uint8), convert, sinks[0])
    sinks[1].write(0, scale.astype(how.compute))
    if form.zero:
        sinks[2].write(0, pack_pairs(zero.T).T if form.bits == 4 else zero)


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
        for start, stop in steps(first, last, k):
            part = slice((start - first) // per_item, (stop - first) // per_item)
            panel[:, part] = convert(start, stop).T
        sink.write_columns(panel[:, : (last - first) // per_item], first // per_item, n // per_item)


def read_rows(
    weights: Weights, key: str, how: Precision, form: Form, start: int, stop: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8] | None]:
    """Rows of a weight as integers: their low bytes [n, K], scales float32 [n, K / group], and the zero
    points' low bytes, or None where the rounding is symmetric."""
    if how.given and weights.form(key) is not None:
        given = weights.integers(key, start, stop)
        zero = None if given.zero is None else given.zero.view(np.uint8)
        return given.integers.view(np.uint8), given.scale.astype(np.float32), zero
    values = to_float32(weights.rows(key, start, stop), weights.kind(key))
    low, scale = round_rows(values, form.group, 7 if form.bits == 4 else 127)
    return low, scale, None


def steps(start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
    """Cut rows of a width into pieces that fit the cache; all but the last have an even number."""
    step = max(2, _CHUNK // max(width, 1) // 2 * 2)
    return ((first, min(first + step, stop)) for first in range(start, stop, step))


def _cast(raw: NDArray[Any], kind: str, to: type[np.floating]) -> NDArray[Any]:
    return to_float16(raw, kind) if to is np.float16 else to_float32(raw, kind)
