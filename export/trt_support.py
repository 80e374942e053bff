"""A check of a graph against what a version of TensorRT documents (:mod:`.trt_tables`).

TensorRT cannot be installed where this is developed, so the check says what the documents promise, not
what a device did. Every refusal names the node and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from pulse_edge.export import trt_tables as tables
from pulse_edge.export.onnx_writer import infer
from pulse_edge.export.trt_tables import OPERATORS, Version

_NEWEST: Version = (99, 0)
_PRODUCTS = {"MatMul": 1, "Gemm": 1, "Conv": 1}  # operator -> its weight's position


def parse_version(version: str | None) -> Version:
    """``"10.3.0"`` -> (10, 3); what is not known counts as the newest."""
    if version is None:
        return _NEWEST
    major, minor, *_ = (*(int(part) for part in version.split(".")[:2]), 0)
    return major, minor


def highest_opset(version: str | None) -> int:
    """Return the highest opset for a TensorRT version, e.g. ``"10.3.0"``; the latest known for ``None``."""
    number = parse_version(version)
    stated = (*tables.OPSETS, tables.INT4_OPSET)
    return max((opset for since, opset, _ in stated if number >= since), default=tables.OPSETS[0][1])


def problems(path: Path, version: str | None = None) -> list[str]:
    """Return one sentence for every node that TensorRT's documents do not promise to take.

    Args:
        path: of an ONNX file; its external weights are not read.
        version: of TensorRT on the device, where it is known.
    """
    graph = _Graph.read(path, version)
    highest, named = highest_opset(version), version or "of today"
    found = [
        f"{path.name} has opset {entry.version}, and TensorRT {named} reads up to {highest}; "
        "use another --precision or --profile trt, or update JetPack."
        for entry in graph.model.opset_import
        if entry.domain in ("", "ai.onnx") and entry.version > highest
    ]
    for node in graph.model.graph.node:
        where = f"{path.name}: node {node.name!r} ({node.op_type})"
        found += [f"{where} {fault}" for fault in _faults(node, graph)]
    return found


@dataclass(frozen=True)
class _Graph:
    model: onnx.ModelProto
    types: dict[str, str]
    ranks: dict[str, int]
    weights: dict[str, TensorProto]
    constants: frozenset[str]  # known when the engine is built: weights, and what is cast from them
    users: dict[str, list[tuple[onnx.NodeProto, int]]]
    makers: dict[str, onnx.NodeProto]
    version: Version

    @classmethod
    def read(cls, path: Path, version: str | None) -> _Graph:
        model, types, shapes = infer(path)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        constants = set(weights)
        users: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        makers = {}
        for node in model.graph.node:
            makers.update(dict.fromkeys(node.output, node))
            for position, name in enumerate(node.input):
                users.setdefault(name, []).append((node, position))
            if node.op_type == "Cast" and node.input[0] in constants:
                constants.add(node.output[0])
        ranks = {name: len(shape) for name, shape in shapes.items()}
        return cls(model, types, ranks, weights, frozenset(constants), users, makers, parse_version(version))


def _faults(node: onnx.NodeProto, graph: _Graph) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx"):
        yield f"is of domain {node.domain!r}; rewrite it with plain ONNX operators."
        return
    known = OPERATORS.get(node.op_type)
    if known is None:
        yield "is not in TensorRT's table; rewrite it with operators that are."
        return
    if graph.version < known.since:
        yield f"came with TensorRT {_text(known.since)}; use --profile trt, or update JetPack."
        return
    steering = tables.STEERING.get(node.op_type, {})
    for position, name in enumerate(node.input):
        kind = graph.types.get(name, "")
        if name and kind not in steering.get(position, known.types):
            yield f"is not documented for {kind or 'unknown'} {name!r}; cast it to another type."
        since, _ = tables.TYPES_SINCE.get((node.op_type, kind), ((0, 0), ""))
        if graph.version < since:
            yield (
                f"takes {kind} from TensorRT {_text(since)} on; "
                "use --precision fp16 or int8, or update JetPack."
            )
    if node.op_type == "Cast" and graph.types.get(node.output[0]) not in known.types:
        yield f"cannot make {graph.types.get(node.output[0])}; cast to another type."
    position, lifted, _ = tables.FIXED.get(node.op_type, (len(node.input), None, ""))
    bound = lifted is None or graph.version < lifted
    if bound and len(node.input) > position and node.input[position] not in graph.constants:
        yield f"computes its axes {node.input[position]!r}; make them an initialiser."
    if node.op_type == "LayerNormalization" and any(node.output[1:]):
        yield "has more than one output; use only the first."
    rules = {"Attention": _attention, "DequantizeLinear": _dequantize, "QuantizeLinear": _quantize}
    if node.op_type in rules:
        yield from rules[node.op_type](node, graph)


def _attention(node: onnx.NodeProto, graph: _Graph) -> Iterator[str]:
    if any(node.input[tables.ATTENTION_INPUTS :]):
        yield "has a past inside; join keys and values before it."
    if any(node.output[1:]):
        yield "has more than one output; use only the first."
    for attribute in node.attribute:
        if attribute.name in tables.ATTENTION_REFUSED:
            yield f"sets {attribute.name}, which the parser refuses; leave it out."
    for name in node.input[: tables.ATTENTION_INPUTS]:
        if name and graph.ranks.get(name) != 4:
            yield f"has {name!r} of rank {graph.ranks.get(name)}; reshape it to 4."


def _quantize(node: onnx.NodeProto, graph: _Graph) -> Iterator[str]:
    yield from _zero_point(node, graph)
    if any(user.op_type != "DequantizeLinear" for user, _ in graph.users.get(node.output[0], [])):
        yield "is not followed by DequantizeLinear; quantise in pairs."


def _dequantize(node: onnx.NodeProto, graph: _Graph) -> Iterator[str]:
    yield from _zero_point(node, graph)
    if node.input[1] not in graph.constants:
        yield f"computes its scale {node.input[1]!r}; make it an initialiser."
    weight, form = graph.weights.get(node.input[0]), {a.name: a.i for a in node.attribute}
    if weight is None:
        yield from _activation(node, graph)
        return
    for user, position in graph.users.get(node.output[0], []):
        if _PRODUCTS.get(user.op_type) != position:
            yield (
                f"feeds {user.name!r} ({user.op_type}), so that its weights would be unpacked into memory; "
                "place it directly before the weight's MatMul."
            )
        elif user.op_type == "MatMul" and graph.ranks.get(node.input[1]):
            wanted = 0 if form.get("block_size") else 1
            if form.get("axis", 1) != wanted:
                yield f"has its scales along axis {form.get('axis', 1)}; quantise along axis {wanted}."
    if graph.types.get(node.input[0]) == "INT4":
        if weight.dims[-1] % 2:
            yield f"has an odd last dimension, {weight.dims[-1]}; keep this layer in fp16."
        block = form.get("block_size", 0)
        if block not in tables.INT4_BLOCKS:
            yield f"has int4 blocks of {block}; use 64 or 128."


def _activation(node: onnx.NodeProto, graph: _Graph) -> Iterator[str]:
    maker = graph.makers.get(node.input[0])
    if graph.types.get(node.input[0]) == "INT4":
        yield "has int4 values that are computed; int4 is for weights only."
    elif maker is None or maker.op_type != "QuantizeLinear":
        yield "has values that no QuantizeLinear made; quantise in pairs."
    elif maker.input[1] != node.input[1]:
        yield f"has another scale than {maker.name!r} before it; use one for both."


def _zero_point(node: onnx.NodeProto, graph: _Graph) -> Iterator[str]:
    if len(node.input) > 2 and node.input[2]:
        zero = graph.weights.get(node.input[2])
        if zero is None or zero.external_data or np.any(onnx.numpy_helper.to_array(zero)):
            yield "has a zero point other than 0; quantise symmetrically."


def _text(version: Version) -> str:
    return ".".join(map(str, version))
