"""Write ONNX graphs by hand, their weights streamed one by one into an external data file.

Nothing but the weight at hand is ever in memory, so the writer serves a model of any size. The
same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

OPSET: Final = 21
IR_VERSION: Final = 10  # the first with opset 21 and 4-bit integers
ALIGNMENT: Final = 4096  # so that a reader can map every weight
_TYPES: Final = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.int64): TensorProto.INT64,
}
Shape = Sequence[int | str]


class GraphWriter:
    """Collects nodes and streams weights; use as a context manager and call :meth:`save` once.

    Args:
        path: of the ``.onnx`` file; the weights go to ``<path>.data`` beside it.
        name: of the graph.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.data = path.with_name(path.name + ".data")
        self._stream = self.data.open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[tuple[Any, ...], str] = {}

    def __enter__(self) -> GraphWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def input(self, name: str, dtype: type[np.generic], shape: Shape) -> str:
        """Declare a graph input; return its name."""
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[np.dtype(dtype)], shape))
        return name

    def output(self, name: str, source: str, dtype: type[np.generic], shape: Shape) -> None:
        """Declare a graph output that carries the tensor ``source``."""
        self._nodes.append(helper.make_node("Identity", [source], [name], name=f"output/{name}"))
        self._outputs.append(helper.make_tensor_value_info(name, _TYPES[np.dtype(dtype)], shape))

    def op(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Add a node with one output; the output has the node's name, which must be new."""
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: type[np.generic]) -> str:
        """Return the name of a small constant; equal constants share one."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant/{len(self._constants)}"
            self._initializers.append(onnx.numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Append a weight to the data file; return its name."""
        return self._external(name, array.shape, _TYPES[array.dtype], np.ascontiguousarray(array))

    def weight_int4(self, name: str, array: NDArray[np.int8]) -> str:
        """Append values from -8 to 7 as ONNX INT4, two to a byte, the first in the low half."""
        flat = array.reshape(-1)
        packed = (flat[0::2] & 0x0F) | ((flat[1::2] & 0x0F) << 4)
        return self._external(name, array.shape, TensorProto.INT4, packed.astype(np.uint8))

    def _external(self, name: str, shape: Sequence[int], kind: int, array: NDArray[Any]) -> str:
        offset = self._stream.tell()
        start = -(-offset // ALIGNMENT) * ALIGNMENT
        self._stream.write(b"\0" * (start - offset))
        array.tofile(self._stream)
        tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        place = {"location": self.data.name, "offset": str(start), "length": str(array.nbytes)}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
        self._initializers.append(tensor)
        return name

    def save(self, metadata: Mapping[str, str] | None = None) -> None:
        """Write the graph; raises ``onnx.checker.ValidationError`` if it is not valid ONNX."""
        self._stream.flush()
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._initializers)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="pulse-edge",
        )
        helper.set_model_props(model, dict(metadata or {}))
        self.path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(self.path), full_check=True)
