"""Parts of an ONNX graph that run on their own, so that a graph larger than the memory can be run at all.

A decoder or a CLIP tower is cut behind its layers: each part holds one layer's weights, read from the
bundle's own data file, and hands its output to the next.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pulse_edge.errors import GateError
from pulse_edge.export.onnx_writer import infer

_LAYER: Final = re.compile(r"(encoder\.)?layers\.\d+\.out")
# ORT quantises activations to int8 behind 4-bit weights unless told not to.
_EXACT: Final = ("session.qdq_matmulnbits_accuracy_level", "0")
_DATA: Final = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Graph:
    """A graph with what is known of its tensors; see :func:`.onnx_writer.infer`."""

    path: Path
    model: onnx.ModelProto
    types: dict[str, str]
    shapes: dict[str, tuple[int | str | None, ...]]

    @classmethod
    def read(cls, path: Path) -> Graph:
        """Read a graph without its weights."""
        return cls(path, *infer(path))

    def value(self, name: str) -> onnx.ValueInfoProto:
        """Describe a tensor as the input or output of a graph."""
        kind = TensorProto.DataType.Value(self.types[name])
        return helper.make_tensor_value_info(name, kind, list(self.shapes[name]))

    def part(self, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
        """The part of the graph that computes ``outputs`` from ``inputs`` (graph inputs need no mention)."""
        given = {value.name for value in self.model.graph.input} | set(inputs)
        makers = {name: node for node in self.model.graph.node for name in node.output}
        wanted, needed, used = list(outputs), set(), set()
        while wanted:
            name = wanted.pop()
            if name in used:
                continue
            used.add(name)
            if name not in given and name in makers:
                needed.add(makers[name].output[0])
                wanted += [other for other in makers[name].input if other]
        graph = helper.make_graph(
            [node for node in self.model.graph.node if node.output[0] in needed],
            "part",
            [self.value(name) for name in sorted(given & used)],
            [self.value(name) for name in outputs],
            [tensor for tensor in self.model.graph.initializer if tensor.name in used],
        )
        return helper.make_model(
            graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
        )

    def parts(self) -> Iterator[tuple[list[str], list[str]]]:
        """Inputs and outputs of the parts between the layers: the cut tensor first, then a decoder's caches.

        A graph without layers is one part.
        """
        cuts = [n.output[0] for n in self.model.graph.node if _LAYER.fullmatch(n.output[0])]
        ends = [value.name for value in self.model.graph.output]
        before: list[str] = []
        for i, cut in enumerate(cuts):
            caches = [name for name in (f"present.{i}.key", f"present.{i}.value") if name in ends]
            yield before, [cut, *caches]
            before = [cut]
        yield before, [name for name in ends if not cuts or not name.startswith("present.")]


def open_model(model: onnx.ModelProto, folder: Path, optimise: bool = True) -> Any:
    """Open a graph in memory, whose weights lie in a folder, in ONNX Runtime.

    Args:
        model: the graph.
        folder: of its data files.
        optimise: as a user's session does; without, weights are widened one by one as they are used, and
            no second copy of them is kept.

    Raises:
        GateError: ONNX Runtime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(*_EXACT)
    options.add_session_config_entry(_DATA, str(folder.resolve()))
    options.enable_cpu_mem_arena = False  # a part is run once or twice: memory goes back at once
    # In the order of the file: what looks at a tensor runs before the next is made.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base but this
        reason = " ".join(str(error).split())[:300]
        raise GateError(
            f"ONNX Runtime cannot load a part of the graph: {reason}. It was not kept."
        ) from error


def run(session: Any, feed: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Run a session on those of the arrays that it takes, in the types that it takes."""
    kinds = {
        "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64,
        "tensor(int32)": np.int32,
    }  # fmt: skip
    taken = {
        entry.name: np.asarray(feed[entry.name]).astype(kinds[entry.type], copy=False)
        for entry in session.get_inputs()
    }
    return dict(zip(outputs, session.run(list(outputs), taken), strict=True))
