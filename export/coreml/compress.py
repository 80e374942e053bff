"""Weights on their way into a Core ML package: dense, as integers with scales, or as palettes.

The integers are those of `export.weights`, which the ONNX bundles hold too, written as MIL's
``constexpr`` operators: the device expands them, and no pass of coremltools chooses, skips or rounds
anything. What was asked for is read back from the finished package all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.converters.mil.mil.types.type_mapping import nptype_from_builtin
from coremltools.models.utils import load_spec
from numpy.typing import NDArray

from pulse_edge.errors import CheckpointError, GateError
from pulse_edge.export.weights import Precision, int4_block, quantize
from pulse_edge.model.quantized import QuantizedWeight

SMALL_BLOCKS: Final = (32, 16)  # where TensorRT's 128 and 64 do not divide: Core ML takes any
PALETTE_BITS: Final = 4
PALETTE_ROWS: Final = 16  # output channels that share a table: Apple's choice for the Neural Engine
_INT4, _UINT4 = (nptype_from_builtin(kind) for kind in (types.int4, types.uint4))
_OPERATORS: Final = {
    "int8": "constexpr_blockwise_shift_scale",
    "int4": "constexpr_blockwise_shift_scale",
    "palette4": "constexpr_lut_to_dense",
}


@dataclass(frozen=True)
class Encoded:
    """One matrix [N, K] as it is stored.

    Attributes:
        kind: ``dense``, ``int8``, ``int4`` or ``palette4``.
        values: the matrix itself, its integers, or its indices into the table.
        table: scales [N, K / block], or palettes [N / rows, 1, 16, 1]; None when dense.
        offset: zero points, like the scales; None where all are 0.
    """

    kind: str
    values: NDArray[Any]
    table: NDArray[np.floating] | None = None
    offset: NDArray[Any] | None = None


def take_integers(weight: QuantizedWeight, how: Precision) -> Encoded:
    """Take a checkpoint's own integers as they are."""
    kind = _INT4 if weight.bits == 4 else np.dtype(np.int8)
    zero = None if weight.zero is None else weight.zero.astype(kind)
    return Encoded(f"int{weight.bits}", weight.integers.astype(kind), weight.scale.astype(how.compute), zero)


def encode(name: str, matrix: NDArray[np.float32], how: Precision, dense: bool = False) -> Encoded:
    """Encode a linear layer's weight [N, K].

    Args:
        name: of the layer, for complaints.
        matrix: float32.
        how: precision.
        dense: do not compress it, whatever the precision.

    Raises:
        CheckpointError: the layer does not fit the precision, or is not finite in it. coremltools' own
            compression would leave such a layer uncompressed and say nothing.
    """
    if dense or how.bits > 8:
        with np.errstate(over="ignore"):  # refused below
            made = Encoded("dense", matrix.astype(how.compute))
    elif how.name == "palette4":
        made = _palette(name, matrix, how)
    else:
        made = _integers(name, matrix, how)
    checked = made.values if made.table is None else made.table
    if not np.isfinite(checked).all():
        raise CheckpointError(
            f"The weight {name} is not finite in {how.name}: it is damaged or overflows. "
            "Export with a higher --precision, or restore the checkpoint."
        )
    return made


def _integers(name: str, matrix: NDArray[np.float32], how: Precision) -> Encoded:
    columns = matrix.shape[1]
    if how.bits == 8:
        integers, scale = quantize(matrix.T, columns, levels=127)
        return Encoded("int8", np.ascontiguousarray(integers.T), scale.T.astype(how.compute))
    block = int4_block(matrix.T.shape) or next((b for b in SMALL_BLOCKS if columns % b == 0), None)
    if block is None:
        raise CheckpointError(
            f"int4 does not fit the layer {name}: none of the blocks 128, 64, 32 and 16 divides its "
            f"{columns} inputs. Export with --precision int8."
        )
    integers, scale = quantize(matrix.T, block, levels=7)
    return Encoded("int4", np.ascontiguousarray(integers.T).astype(_INT4), scale.T.astype(how.compute))


def _palette(name: str, matrix: NDArray[np.float32], how: Precision) -> Encoded:
    """Cluster the weights of every 16 rows to 16 values (Lloyd, 1982), on a histogram of 4,096 bins.

    On the histogram an iteration costs the bins and not the weights; the centres are the means of the
    binned weights, so what is lost is the order inside a bin.
    """
    rows, columns = matrix.shape
    if rows % PALETTE_ROWS:
        raise CheckpointError(
            f"palette4 does not fit the layer {name}: {PALETTE_ROWS} does not divide its {rows} outputs. "
            "Export with --precision int8."
        )
    if not np.isfinite(matrix).all():
        return Encoded("palette4", matrix, matrix)  # has no histogram, and is refused by the caller
    groups = matrix.reshape(rows // PALETTE_ROWS, -1)
    tables = np.empty((len(groups), 1 << PALETTE_BITS), np.float32)
    indices = np.empty(groups.shape, np.uint8)
    for table, index, group in zip(tables, indices, groups, strict=True):
        table[:] = _lloyd(group)
        index[:] = np.searchsorted((table[1:] + table[:-1]) / 2, group)
    stored = tables.reshape(len(groups), 1, -1, 1).astype(how.compute)
    return Encoded("palette4", indices.reshape(rows, columns).astype(_UINT4), stored)


def _lloyd(weights: NDArray[np.float32], bins: int = 4096, rounds: int = 30) -> NDArray[np.float32]:
    count, edges = np.histogram(weights, bins)
    middle = (edges[1:] + edges[:-1]) / 2
    total, moment = (np.concatenate([[0.0], np.cumsum(part)]) for part in (count, count * middle))
    # Start at even quantiles of the cube root of the density, which is where optimal centres lie
    # (Panter and Dite, 1951).
    density = np.cumsum(np.cbrt(count))
    share = (np.arange(1 << PALETTE_BITS) + 0.5) / (1 << PALETTE_BITS)
    centres = middle[np.searchsorted(density, share * density[-1])]
    for _ in range(rounds):
        cuts = np.concatenate([[0], np.searchsorted(middle, (centres[1:] + centres[:-1]) / 2), [bins]])
        held = np.diff(total[cuts])
        moved = np.where(held > 0, np.diff(moment[cuts]) / np.maximum(held, 1), centres)
        if np.allclose(moved, centres, rtol=0, atol=1e-9):
            break
        centres = np.sort(moved)
    return np.asarray(centres, np.float32)


def constant(name: str, array: NDArray[Any]) -> Any:
    """Add a constant to the function being built; functions that use the same name share one copy."""
    made = mb.const(val=array, name=name.replace(".", "_"))
    if array.size >= 10:  # smaller ones are written into the program itself
        made.op.weight_id = name
    return made


def matrix(name: str, encoded: Encoded) -> Any:
    """Add an encoded matrix to the function being built; return the variable of the dense one."""
    if encoded.table is None:
        return constant(name, encoded.values)
    values, table = (
        constant(f"{name}.{encoded.kind}", encoded.values),
        constant(f"{name}.table", encoded.table),
    )
    made = f"{name}.dense".replace(".", "_")
    if encoded.kind == "palette4":
        return mb.constexpr_lut_to_dense(indices=values, lut=table, name=made)
    if encoded.offset is not None:
        offset = constant(f"{name}.offset", encoded.offset)
        return mb.constexpr_blockwise_shift_scale(data=values, scale=table, offset=offset, name=made)
    return mb.constexpr_blockwise_shift_scale(data=values, scale=table, name=made)


def check_compressed(path: Path, asked: Mapping[str, str]) -> None:
    """Check in a finished package that every matrix asked for is stored compressed, in every function.

    Args:
        path: of the package.
        asked: kind of each matrix, by its name in :func:`matrix`.

    Raises:
        GateError: one is dense, or stands in another form; it is named.
    """
    for name, function in load_spec(str(path)).mlProgram.functions.items():
        (block,) = function.block_specializations.values()
        found = {op.outputs[0].name: op.type for op in block.operations if op.type in _OPERATORS.values()}
        missing = [
            layer
            for layer, kind in asked.items()
            if found.get(f"{layer}.dense".replace(".", "_")) != _OPERATORS[kind]
        ]
        if missing:
            raise GateError(
                f"coremltools left {len(missing)} layer(s) of {path.name} uncompressed in {name}: "
                f"{', '.join(missing[:3])}. Nothing was kept. Install the tested version: "
                'pip install "pulse-edge[coreml]"'
            )
