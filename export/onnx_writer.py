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

from pulse_edge.errors import CheckpointError, GateError

IR_VERSIONS: Final = {18: 8, 19: 9, 21: 10}  # by opset: the oldest that holds it
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
        opset: of the operators, a key of :data:`IR_VERSIONS`.
    """

    def __init__(self, path: Path, name: str, opset: int) -> None:
        self.path, self.name, self.opset = path, name, opset
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

    def output(self, name: str, dtype: type[np.generic], shape: Shape) -> None:
        """Declare that the tensor ``name``, which a node makes, is an output of the graph."""
        self._outputs.append(helper.make_tensor_value_info(name, _TYPES[np.dtype(dtype)], shape))

    def op(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Add a node with one output; the output has the node's name, which must be new."""
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def cast(self, x: str, dtype: type[np.generic], name: str) -> str:
        """Add a conversion to ``dtype``."""
        return self.op("Cast", x, name=name, to=_TYPES[np.dtype(dtype)])

    def constant(self, value: Any, dtype: type[np.generic]) -> str:
        """Return the name of a small constant; equal constants share one."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant/{len(self._constants)}"
            self._initializers.append(onnx.numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def weight(self, name: str, array: NDArray[Any], dtype: type[np.generic] | None = None) -> str:
        """Append a weight to the data file, converted to ``dtype`` if one is given; return its name.

        Raises:
            CheckpointError: it holds NaN or infinity, or becomes infinite as float16.
        """
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, dtype)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(
                f"{name} holds values that are not finite as {array.dtype.name}. Use a sound checkpoint; "
                "if its weights exceed float16's 65504, use --target onnx --precision fp32."
            )
        return self._external(name, array.shape, _TYPES[array.dtype], array)

    def weight_int4(self, name: str, array: NDArray[np.int8]) -> str:
        """Append values from -8 to 7 as ONNX INT4, two to a byte, the first in the low half."""
        flat = array.reshape(-1)
        packed = (flat[0::2] & 0x0F) | ((flat[1::2] & 0x0F) << 4)
        return self._external(name, array.shape, TensorProto.INT4, packed.astype(np.uint8))

    def _external(self, name: str, shape: Sequence[int], kind: int, array: NDArray[Any]) -> str:
        offset = self._stream.tell()
        start = -(-offset // ALIGNMENT) * ALIGNMENT
        self._stream.write(b"\0" * (start - offset))
        self._stream.write(array.data)  # unlike ndarray.tofile, says why when it fails
        tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        place = {"location": self.data.name, "offset": str(start), "length": str(array.nbytes)}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
        self._initializers.append(tensor)
        return name

    def save(self, metadata: Mapping[str, str] | None = None) -> None:
        """Write the graph."""
        self._stream.flush()
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._initializers)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=IR_VERSIONS[self.opset],
            producer_name="pulse-edge",
        )
        helper.set_model_props(model, dict(metadata or {}))
        self.path.write_bytes(model.SerializeToString(deterministic=True))


def infer(path: Path) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Read a graph and infer its tensors; external weights are not read.

    Returns:
        The model, and the element type of every tensor whose type and rank are known, e.g. ``"FLOAT16"``.
    """
    model = onnx.load(str(path), load_external_data=False)
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    types = {
        value.name: TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        for value in [*graph.input, *graph.value_info, *graph.output]
        if value.type.tensor_type.elem_type and value.type.tensor_type.HasField("shape")
    }
    return model, types | {t.name: TensorProto.DataType.Name(t.data_type) for t in graph.initializer}


def check_graph(path: Path) -> None:
    """Check that a graph is valid ONNX and that type and rank of every tensor in it can be inferred.

    Raises:
        GateError: it is not; that is a fault of pulse-edge or of torch's exporter, not of the user.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model, types = infer(path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _invalid(path, " ".join(str(error).split())[:300]) from error
    unknown = [o for node in model.graph.node for o in node.output if o and o not in types]
    if unknown:
        raise _invalid(path, f"the type or rank of {unknown[0]!r} cannot be inferred")


def _invalid(path: Path, why: str) -> GateError:
    return GateError(
        f"The exported {path.name} is not valid ONNX: {why}. The bundle was not kept. "
        "Install the tested versions of torch and onnx: pip install --upgrade 'pulse-edge[export]'"
    )
