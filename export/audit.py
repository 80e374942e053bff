"""Which tensors of a float16 graph come near float16's end, measured on real ECGs, and keeping those wide.

The graph is turned into its float32 twin: the same nodes and the same weights in the same file, with
every float16 made float32. The largest magnitude of each tensor is computed inside the graph, so that no
intermediate tensor is kept. A tensor that comes within a factor of :data:`MARGIN` of 65504 on the
calibration pages is endangered: its node and the nodes that read it are computed in float32 in the bundle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pulse_edge.errors import GateError
from pulse_edge.export.slices import Graph, open_model, run

LARGEST: Final = 65504.0
MARGIN: Final = 4.0  # a few calibration pages do not hold the largest value that will ever come
_PEAK: Final = "/peak"
_HALF: Final = TensorProto.FLOAT16
# Their type is an attribute or follows from shapes alone; they compute nothing that could overflow.
_NO_ARITHMETIC: Final = ("Cast", "Shape")


@dataclass(frozen=True)
class Danger:
    """A tensor that comes near float16's end.

    Attributes:
        graph: file.
        tensor: its name.
        node: that makes it.
        largest: magnitude on the calibration pages.
    """

    graph: str
    tensor: str
    node: str
    largest: float

    def asdict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in float32; weights stay in their file and are widened as they are read."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    casts = []
    for tensor in wide.graph.initializer:
        if tensor.data_type == _HALF:
            stored, name = f"{tensor.name}/stored", tensor.name
            casts.append(
                helper.make_node("Cast", [stored], [name], name=f"{name}/wide", to=TensorProto.FLOAT)
            )
            tensor.name = stored
    for node in wide.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _HALF:
                attribute.i = TensorProto.FLOAT
    for value in [*wide.graph.input, *wide.graph.output]:
        if value.type.tensor_type.elem_type == _HALF:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = [*casts, *wide.graph.node]
    del wide.graph.node[:], wide.graph.value_info[:]
    wide.graph.node.extend(nodes)
    return wide


def observed(part: onnx.ModelProto, types: Mapping[str, str]) -> tuple[onnx.ModelProto, list[str]]:
    """The float32 twin of a part, with one more output for the peak of each tensor that was float16."""
    names = [n for node in part.graph.node for n in node.output if types.get(n) == "FLOAT16"]
    wide, nodes = twin(part), []
    for node in wide.graph.node:
        nodes.append(node)
        for name in set(node.output) & set(names):  # directly behind it, so that it need not be kept
            size, peak = f"{name}/abs", name + _PEAK
            nodes.append(helper.make_node("Abs", [name], [size], name=size))
            nodes.append(helper.make_node("ReduceMax", [size], [peak], name=peak, keepdims=0))
            wide.graph.output.append(helper.make_tensor_value_info(peak, TensorProto.FLOAT, []))
    del wide.graph.node[:]
    wide.graph.node.extend(nodes)
    return wide, names


def peaks(
    path: Path, feeds: Sequence[Mapping[str, NDArray[Any]]]
) -> tuple[dict[str, float], list[dict[str, NDArray[Any]]]]:
    """Run a graph's float32 twin, part by part, on some inputs.

    Args:
        path: of the graph.
        feeds: inputs; missing caches are empty.

    Returns:
        The largest magnitude of every tensor that is float16 in the graph, and the graph's outputs.
    """
    graph = Graph.read(path)
    largest: dict[str, float] = {}
    states = [dict(_caches(graph)) | dict(feed) for feed in feeds]
    for inputs, outputs in graph.parts():
        model, names = observed(graph.part(inputs, outputs), graph.types)
        session = open_model(model, path.parent, optimise=False)
        for state in states:
            found = run(session, state, [*outputs, *(name + _PEAK for name in names)])
            state.update((name, found[name]) for name in outputs)
            for name in names:
                largest[name] = float(np.maximum(largest.get(name, 0.0), found[name + _PEAK]))
    return largest, states


def dangers(path: Path, largest: Mapping[str, float]) -> list[Danger]:
    """The tensors of a graph whose magnitude endangers float16, or is no number."""
    makers = {name: node for node in Graph.read(path).model.graph.node for name in node.output}
    return [
        Danger(path.name, name, makers[name].name, value)
        for name, value in largest.items()
        if not value <= LARGEST / MARGIN
    ]


def keep_wide(path: Path, tensors: Iterable[str]) -> list[str]:
    """Compute endangered tensors, and what reads them, in float32: rewrite a graph in place.

    A node is widened where it makes or reads an endangered tensor: its float16 inputs are cast, and its
    outputs are cast back unless they are endangered themselves. Its weights stay as they are in the file.

    Args:
        path: of the graph.
        tensors: that are endangered.

    Returns:
        Names of the nodes that are now computed in float32.

    Raises:
        GateError: an endangered tensor is an output of the graph, whose type is its contract.
    """
    graph, wide = Graph.read(path), set(tensors)
    model, nodes, widened = graph.model, [], []
    scales: list[onnx.NodeProto] = []
    unpacked = {node.output[0]: node for node in graph.model.graph.node if node.op_type == "DequantizeLinear"}
    fixed = [v.name for v in model.graph.output if v.name in wide]
    if fixed:
        raise GateError(
            f"{path.name}: {fixed[0]!r} overflows float16 on real ECGs, and it is an output. "
            "The bundle was not kept. Use --target onnx --precision fp32, or another checkpoint."
        )
    half = {name for name, kind in graph.types.items() if kind == "FLOAT16"}
    for node in model.graph.node:
        if node.op_type in _NO_ARITHMETIC or not wide & {*node.input, *node.output}:
            for attribute in node.attribute:
                if node.op_type == "Cast" and node.output[0] in wide and attribute.name == "to":
                    attribute.i = TensorProto.FLOAT
            nodes.append(node)
            continue
        widened.append(node.name)
        for position, name in enumerate(node.input):
            if name in half and name not in wide and name in unpacked:
                scales.append(_widen_scale(unpacked[name]))  # so that it still feeds its product directly
            elif name in half and name not in wide:
                cast = f"{node.name}/input{position}/wide"
                nodes.append(helper.make_node("Cast", [name], [cast], name=cast, to=TensorProto.FLOAT))
                node.input[position] = cast
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name in half and name not in wide:
                node.output[position] = f"{name}/wide"
                nodes.append(
                    helper.make_node(
                        "Cast", [f"{name}/wide"], [name], name=f"{name}/narrow", to=TensorProto.FLOAT16
                    )
                )
    del model.graph.node[:]
    model.graph.node.extend([*scales, *nodes])
    path.write_bytes(model.SerializeToString(deterministic=True))
    return widened


def _widen_scale(node: onnx.NodeProto) -> onnx.NodeProto:
    scale = node.input[1]
    node.input[1] = f"{scale}/wide"
    return helper.make_node("Cast", [scale], [node.input[1]], name=node.input[1], to=TensorProto.FLOAT)


def _caches(graph: Graph) -> Iterable[tuple[str, NDArray[np.float32]]]:
    for value in graph.model.graph.input:
        if value.name.startswith("past_key_values."):
            shape = [n if isinstance(n, int) else 0 for n in graph.shapes[value.name]]
            yield value.name, np.zeros(shape, np.float32)
