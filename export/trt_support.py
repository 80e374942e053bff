"""What TensorRT's ONNX parser documents as supported, as data, and a check of a graph against it.

Sources: docs/operators.md of onnx/onnx-tensorrt as released with TensorRT 9.2 and with 10.15. An
operator or type is listed here if both tables have it, so that it holds for every 10.x between; of
their restrictions the stricter counts (9.2: axes of Slice, Squeeze and Unsqueeze are initialisers;
10.15: those of ReduceMean are, and LayerNormalization has one output). INT4 came between: it is in
10.15's table. Its rules (symmetric, blocks of 64 or 128, an even last dimension) are those of
TensorRT's developer guide, "Working with Quantized Types". Only operators that our graphs use are
listed. TensorRT cannot be installed here, so the check says what the documents promise, not what a
device did.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto

from pulse_edge.export.onnx_writer import infer

_FLOATS: Final = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_INTEGERS: Final = frozenset({"INT32", "INT64"})
_NUMBERS: Final = _FLOATS | _INTEGERS
_ANY: Final = _NUMBERS | {"BOOL"}
# Types that an operator's data may have.
OPERATORS: Final[dict[str, frozenset[str]]] = {
    "Add": _NUMBERS,
    "Cast": _ANY,
    "Concat": _ANY,
    "Conv": _FLOATS,
    "DequantizeLinear": frozenset({"INT8", "INT4"}),
    "Div": _NUMBERS,
    "Erf": _FLOATS,
    "Expand": _ANY,
    "Gather": _ANY,
    "LayerNormalization": _FLOATS,
    "LessOrEqual": _NUMBERS,
    "MatMul": _FLOATS,
    "Mul": _NUMBERS,
    "Neg": _NUMBERS,
    "Range": _NUMBERS,
    "ReduceMean": _NUMBERS,
    "Reshape": _ANY,
    "Shape": _ANY,
    "Sigmoid": _FLOATS,
    "Slice": _ANY,
    "Softmax": _FLOATS,
    "Sqrt": _FLOATS,
    "Squeeze": _ANY,
    "Sub": _NUMBERS,
    "Transpose": _ANY,
    "Unsqueeze": _ANY,
    "Where": _ANY,
}
# Inputs that steer an operator rather than being its data: position -> types.
_STEERING: Final[dict[str, dict[int, frozenset[str]]]] = {
    "DequantizeLinear": {1: _FLOATS, 2: frozenset({"INT8", "INT4"})},
    "Expand": {1: _INTEGERS},
    "Gather": {1: _INTEGERS},
    "ReduceMean": {1: _INTEGERS},
    "Reshape": {1: _INTEGERS},
    "Slice": dict.fromkeys((1, 2, 3, 4), _INTEGERS),
    "Squeeze": {1: _INTEGERS},
    "Unsqueeze": {1: _INTEGERS},
    "Where": {0: frozenset({"BOOL"})},
}
# Inputs that must be known when the engine is built.
_FIXED: Final = {"ReduceMean": 1, "Slice": 3, "Squeeze": 1, "Unsqueeze": 1}
INT4_BLOCKS: Final = (64, 128)
# Highest opset by the first version that states it (operators.md, release notes).
OPSETS: Final = (((9, 2), 19), ((10, 0), 20), ((10, 9), 22), ((10, 13), 24))
# Blocks of DequantizeLinear are opset 21; the parser takes them from 10.1 on, which states opset 20.
INT4_SINCE: Final = ((10, 1), 21)


def highest_opset(version: str | None) -> int:
    """Return the highest opset for a TensorRT version, e.g. ``"10.3.0"``; the latest known for ``None``."""
    if version is None:
        return OPSETS[-1][1]
    number = tuple(int(part) for part in version.split(".")[:2])
    return max((opset for since, opset in (*OPSETS, INT4_SINCE) if number >= since), default=OPSETS[0][1])


def problems(path: Path, version: str | None = None) -> list[str]:
    """Return one sentence for every node that TensorRT's documents do not promise to take.

    Args:
        path: of an ONNX file; its external weights are not read.
        version: of TensorRT on the device, where it is known.
    """
    model, types = infer(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    highest = highest_opset(version)
    found = [
        f"{path.name} has opset {entry.version}, and TensorRT {version or 'of today'} reads up to {highest}; "
        "update JetPack or use another --precision."
        for entry in model.opset_import
        if entry.domain in ("", "ai.onnx") and entry.version > highest
    ]
    for node in model.graph.node:
        where = f"{path.name}: node {node.name!r} ({node.op_type})"
        found += [f"{where} {fault}" for fault in _faults(node, types, weights)]
    return found


def _faults(node: onnx.NodeProto, types: dict[str, str], weights: dict[str, TensorProto]) -> list[str]:
    if node.domain not in ("", "ai.onnx"):
        return [f"is of domain {node.domain!r}; rewrite it with plain ONNX operators."]
    if node.op_type not in OPERATORS:
        return ["is not in TensorRT's table; rewrite it with operators that are."]
    steering = _STEERING.get(node.op_type, {})
    faults = []
    for position, name in enumerate(node.input):
        allowed = steering.get(position, OPERATORS[node.op_type])
        if name and types.get(name) not in allowed:
            faults.append(f"is not documented for {types.get(name)} {name!r}; cast it to another type.")
    if node.op_type == "Cast" and types.get(node.output[0]) not in OPERATORS["Cast"]:
        faults.append(f"cannot make {types.get(node.output[0])}; cast to another type.")
    fixed = _FIXED.get(node.op_type)
    if fixed is not None and len(node.input) > fixed and node.input[fixed] not in weights:
        faults.append(f"computes its axes {node.input[fixed]!r}; make them an initialiser.")
    if node.op_type == "LayerNormalization" and any(node.output[1:]):
        faults.append("has more than one output; use only the first.")
    if node.op_type == "DequantizeLinear":
        faults += _dequantize_faults(node, types, weights)
    return faults


def _dequantize_faults(
    node: onnx.NodeProto, types: dict[str, str], weights: dict[str, TensorProto]
) -> list[str]:
    faults = []
    if len(node.input) > 2 and node.input[2]:
        zero = weights.get(node.input[2])
        if zero is None or np.any(onnx.numpy_helper.to_array(zero)):
            faults.append("has a zero point other than 0; quantise symmetrically.")
    if types.get(node.input[0]) == "INT4":
        weight = weights.get(node.input[0])
        block = next((a.i for a in node.attribute if a.name == "block_size"), 0)
        if weight is None:
            faults.append("has int4 values that are computed; int4 is for weights only.")
        elif weight.dims[-1] % 2:
            faults.append(f"has an odd last dimension, {weight.dims[-1]}; keep this layer in fp16.")
        if block not in INT4_BLOCKS:
            faults.append(f"has int4 blocks of {block}; use 64 or 128.")
    return faults
