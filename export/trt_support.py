"""What TensorRT's ONNX parser documents as supported, as data, and a check of a graph against it.

Source: docs/operators.md of onnx/onnx-tensorrt as released with TensorRT 10.15, restricted to the
operators that our graphs use; none of these is a recent addition: each is in the table of
TensorRT 10.1 too. Blocked int4 weights: TensorRT developer guide, "Working with Quantized Types":
symmetric, blocks of 64 or 128. TensorRT itself cannot be installed here, so the check says what the
documents promise, not what a device did.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto

_FLOATS: Final = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_NUMBERS: Final = _FLOATS | {"INT32", "INT64"}
_ANY: Final = _NUMBERS | {"BOOL"}
OPERATORS: Final[dict[str, frozenset[str]]] = {
    "Add": _NUMBERS,
    "Cast": _ANY | {"UINT8"},
    "Concat": _ANY,
    "Conv": _FLOATS,
    "DequantizeLinear": frozenset({"INT8", "INT4"}),
    "Div": _NUMBERS,
    "Erf": _FLOATS,
    "Expand": _ANY,
    "Gather": _ANY,
    "Identity": _ANY,
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
INT4_BLOCKS: Final = (64, 128)
MAX_OPSET: Final = 24  # of the parser in TensorRT 10.15; 10.3 on JetPack 6 states 20, see facts in README


def problems(path: Path) -> list[str]:
    """Return one sentence for every node that TensorRT's documents do not promise to take.

    Args:
        path: of an ONNX file; its external weights are not read.
    """
    model = onnx.load(str(path), load_external_data=False)
    found = [
        f"opset {entry.version} is above {MAX_OPSET}; export at a lower opset."
        for entry in model.opset_import
        if entry.domain in ("", "ai.onnx") and entry.version > MAX_OPSET
    ]
    types = _types(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        where = f"{path.name}: node {node.name!r} ({node.op_type})"
        if node.domain not in ("", "ai.onnx"):
            found.append(f"{where} is of domain {node.domain!r}; only plain ONNX operators are taken.")
        elif node.op_type not in OPERATORS:
            found.append(f"{where} is not in TensorRT's table; rewrite it with the operators that are.")
        elif types.get(node.input[0]) not in OPERATORS[node.op_type]:
            found.append(f"{where} is not documented for {types.get(node.input[0])}; cast its input.")
        elif node.op_type == "DequantizeLinear":
            found += [f"{where} {fault}" for fault in _dequantize_faults(node, weights)]
        elif node.op_type == "ReduceMean" and len(node.input) > 1 and node.input[1] not in weights:
            found.append(f"{where} has computed axes; they must be an initialiser.")
    return found


def _dequantize_faults(node: onnx.NodeProto, weights: dict[str, TensorProto]) -> list[str]:
    faults = []
    if len(node.input) > 2 and node.input[2] not in ("", None):
        zero = weights.get(node.input[2])
        if zero is None or np.any(onnx.numpy_helper.to_array(zero)):
            faults.append("has a zero point other than 0; quantise symmetrically.")
    weight = weights.get(node.input[0])
    if weight is not None and weight.data_type == TensorProto.INT4:
        block = next((a.i for a in node.attribute if a.name == "block_size"), 0)
        if block not in INT4_BLOCKS:
            faults.append(f"has int4 blocks of {block}; use 64 or 128.")
        if weight.dims[-1] % 2:
            faults.append(f"has an odd last dimension, {weight.dims[-1]}; keep this layer in fp16.")
    return faults


def _types(model: onnx.ModelProto) -> dict[str, str]:
    """Element type of every tensor, by name."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    types = {
        value.name: TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        for value in [*inferred.input, *inferred.value_info, *inferred.output]
    }
    return types | {t.name: TensorProto.DataType.Name(t.data_type) for t in inferred.initializer}
