"""Write ONNX graphs by hand: first the graph, with a place for every weight, then the weights.

A graph is known in full, and checked, before a byte of its weights is read. They are then made chunk by
chunk, each at its place in one external data file, so that nothing but the chunk at hand is ever in
memory, a writer that was killed goes on behind the last finished chunk, and the same inputs give the
same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pulse_edge.errors import CheckpointError, GateError, PulseEdgeError

IR_VERSIONS: Final = {18: 8, 19: 9, 21: 10, 23: 11}  # by opset: the oldest that holds it
ALIGNMENT: Final = 4096  # so that a reader can map every weight
_TYPES: Final = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int64): TensorProto.INT64,
}
CONTRIB: Final = "com.microsoft"  # ONNX Runtime's own operators
INT4: Final = "int4"  # numpy has no such type; values come two to a byte, the first in the low half
Kind = type[np.generic] | str
Shape = Sequence[int | str]


@dataclass(frozen=True)
class Place:
    """Where a weight lies in the data file: ``bytes`` bytes from ``offset`` on."""

    name: str
    kind: int
    shape: tuple[int, ...]
    offset: int
    bytes: int


class RunningHash:
    """SHA-256 of a file that is written in order, with zeros between its weights.

    Hashing while the bytes are at hand spares reading the file again, which a disk may take long for.
    """

    def __init__(self) -> None:
        self._sha, self._end, self._ordered = hashlib.sha256(), 0, True

    def see(self, at: int, view: memoryview) -> None:
        """Take note of what was written at a place."""
        gap = at - self._end
        self._ordered = self._ordered and 0 <= gap < ALIGNMENT
        if self._ordered:
            self._sha.update(b"\0" * gap)
            self._sha.update(view)
            self._end = at + len(view)

    def result(self, size: int) -> str | None:
        """The hash of a file of ``size`` bytes, or None where it was not written whole and in order."""
        return self._sha.hexdigest() if self._ordered and self._end == size else None


class Sink:
    """Writes one weight at its place.

    Args:
        handle: of the data file.
        place: of the weight.
        hashed: takes note of what is written.
    """

    def __init__(self, handle: int, place: Place, hashed: RunningHash) -> None:
        self._handle, self._place, self._hashed, self.name = handle, place, hashed, place.name

    def write(self, at: int, array: NDArray[Any]) -> None:
        """Write an array at byte ``at`` of the weight.

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        array = np.ascontiguousarray(array)
        if at + array.nbytes > self._place.bytes:
            raise PulseEdgeError(f"{self.name} does not fit its place in the graph. Report this.")
        self._check(array)
        self._put(at, array)

    def write_columns(self, matrix: NDArray[Any], column: int, columns: int) -> None:
        """Write a matrix [K, n] as columns from ``column`` on of a row-major matrix [K, columns].

        Raises:
            CheckpointError: it holds NaN or infinity.
        """
        if matrix.shape[1] == columns:
            self.write(0, matrix)
            return
        self._check(matrix)
        for k, row in enumerate(matrix):
            self._put((k * columns + column) * matrix.itemsize, row)

    def _check(self, array: NDArray[Any]) -> None:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CheckpointError(
                f"{self.name} holds values that are not finite as {array.dtype.name}. "
                "Use a sound checkpoint; if its weights exceed float16's 65504, "
                "use --target onnx --precision fp32."
            )

    def _put(self, at: int, array: NDArray[Any]) -> None:
        view, at = array.reshape(-1).view(np.uint8).data, self._place.offset + at
        self._hashed.see(at, view)
        while view:
            written = os.pwrite(self._handle, view, at)
            view, at = view[written:], at + written


@dataclass(frozen=True)
class Chunk:
    """Weights that are made in one go.

    Attributes:
        name: new in its graph.
        places: of the weights.
        fill: makes and writes them, given their sinks in the same order.
    """

    name: str
    places: tuple[Place, ...]
    fill: Callable[[Sequence[Sink]], None]

    @property
    def bytes(self) -> int:
        """Bytes of all its weights."""
        return sum(place.bytes for place in self.places)


class GraphWriter:
    """Collects the nodes of a graph and the places of its weights.

    Args:
        path: of the ``.onnx`` file; the weights go to ``<path>.data`` beside it.
        name: of the graph.
        opset: of the operators, a key of :data:`IR_VERSIONS`.

    Attributes:
        chunks: of the data file, in its order.
        size: of the data file in bytes.
    """

    def __init__(self, path: Path, name: str, opset: int) -> None:
        self.path, self.name, self.opset = path, name, opset
        self.data = path.with_name(path.name + ".data")
        self.chunks: list[Chunk] = []
        self.size = 0
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._known: list[onnx.ValueInfoProto] = []
        self._constants: dict[tuple[Any, ...], str] = {}

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

    def contrib(
        self,
        kind: str,
        *inputs: str,
        names: Sequence[str],
        dtype: type[np.generic],
        shapes: Sequence[Shape],
        **attributes: Any,
    ) -> str:
        """Add one of ONNX Runtime's own nodes; return its first output.

        Args:
            kind: of the operator, in the domain :data:`CONTRIB`.
            inputs: an empty name stands for one that is left out.
            names: of the outputs; the node has the first.
            dtype: of all outputs.
            shapes: of the outputs, which ONNX's shape inference does not know.
            attributes: of the node.
        """
        node = helper.make_node(kind, list(inputs), list(names), names[0], domain=CONTRIB, **attributes)
        self._nodes.append(node)
        for name, shape in zip(names, shapes, strict=True):
            self._known.append(helper.make_tensor_value_info(name, _TYPES[np.dtype(dtype)], shape))
        return names[0]

    def pair(self, kind: str, *inputs: str, names: tuple[str, str], **attributes: Any) -> tuple[str, str]:
        """Add a node with two outputs; their names must be new."""
        self._nodes.append(helper.make_node(kind, list(inputs), list(names), name=names[0], **attributes))
        return names

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

    def weight(self, name: str, kind: Kind, shape: Sequence[int], make: Callable[[], NDArray[Any]]) -> str:
        """Give a weight that is made whole its place; return its name."""
        dtype = np.dtype(kind)

        def fill(sinks: Sequence[Sink]) -> None:
            with np.errstate(over="ignore"):  # what becomes infinite is refused by the sink
                sinks[0].write(0, make().astype(dtype, copy=False))

        return self.weights(name, [(name, kind, shape)], fill)[0]

    def weights(
        self,
        chunk: str,
        tensors: Sequence[tuple[str, Kind, Sequence[int]]],
        fill: Callable[[Sequence[Sink]], None],
    ) -> list[str]:
        """Give weights that are made together their places; return their names."""
        places = tuple(self._place(*tensor) for tensor in tensors)
        self.chunks.append(Chunk(chunk, places, fill))
        for place in places:
            self._external(place, self.data.name)
        return [place.name for place in places]

    def chunk(self, name: str) -> Chunk:
        """The weights that were given their places under a name; KeyError if there are none."""
        return {chunk.name: chunk for chunk in self.chunks}[name]

    def borrow(self, place: Place, file: str) -> str:
        """Use a weight that lies in another graph's data file; return its name."""
        self._external(place, file)
        return place.name

    def save(self, metadata: Mapping[str, str] | None = None) -> None:
        """Write the graph."""
        outputs = {value.name for value in self._outputs}
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, self._initializers,
            value_info=[value for value in self._known if value.name not in outputs],
        )  # fmt: skip
        domains = [helper.make_opsetid("", self.opset)]
        if any(node.domain == CONTRIB for node in self._nodes):
            domains.append(helper.make_opsetid(CONTRIB, 1))
        model = helper.make_model(
            graph,
            opset_imports=domains,
            ir_version=IR_VERSIONS[self.opset],
            producer_name="pulse-edge",
        )
        helper.set_model_props(model, dict(metadata or {}))
        self.path.write_bytes(model.SerializeToString(deterministic=True))

    def reserve(self) -> None:
        """Make the data file, of the right size; what it holds already stays."""
        with self.data.open("ab") as stream:
            stream.truncate(self.size)

    def fill(
        self,
        finished: Callable[[str, int], None] = lambda name, handle: None,
        skip: frozenset[str] = frozenset(),
    ) -> str | None:
        """Make the weights, in their order.

        Args:
            finished: called with the name of every chunk once it is written, and the file's handle.
            skip: chunks that are there already.

        Returns:
            SHA-256 of the data file, or None where it was not written from end to end.

        Raises:
            CheckpointError: a weight is not finite in its precision.
        """
        self.reserve()
        hashed = RunningHash()
        with self.data.open("r+b", buffering=0) as stream:
            for chunk in self.chunks:
                if chunk.name not in skip:
                    chunk.fill([Sink(stream.fileno(), place, hashed) for place in chunk.places])
                finished(chunk.name, stream.fileno())
        return hashed.result(self.size)

    def _place(self, name: str, kind: Kind, shape: Sequence[int]) -> Place:
        count = int(np.prod(shape, dtype=np.int64))
        number = TensorProto.INT4 if kind == INT4 else _TYPES[np.dtype(kind)]
        size = -(-count // 2) if kind == INT4 else count * np.dtype(kind).itemsize
        offset = -(-self.size // ALIGNMENT) * ALIGNMENT
        self.size = offset + size
        return Place(name, number, tuple(shape), offset, size)

    def _external(self, place: Place, file: str) -> None:
        tensor = TensorProto(
            name=place.name, data_type=place.kind, dims=place.shape, data_location=TensorProto.EXTERNAL
        )
        where = {"location": file, "offset": str(place.offset), "length": str(place.bytes)}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=value)
        self._initializers.append(tensor)


def infer(path: Path) -> tuple[onnx.ModelProto, dict[str, str], dict[str, tuple[int | str | None, ...]]]:
    """Read a graph and infer its tensors; external weights are not read.

    Returns:
        The model; the element type of every tensor whose type and rank are known, e.g. ``"FLOAT16"``; and
        the shape of each, whose entries are lengths, names of dynamic lengths, or None where unknown.
    """
    model = onnx.load(str(path), load_external_data=False)
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        # Small constants are taken for shapes, whose arithmetic onnx knows for lists of one length only.
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types, shapes = {}, {}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        kind = value.type.tensor_type
        if kind.elem_type and kind.HasField("shape"):
            types[value.name] = TensorProto.DataType.Name(kind.elem_type)
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim
            )
    for tensor in graph.initializer:
        types[tensor.name] = TensorProto.DataType.Name(tensor.data_type)
        shapes[tensor.name] = tuple(tensor.dims)
    return model, types, shapes


def check_graph(path: Path) -> None:
    """Check that a graph is valid ONNX, that type and rank of every tensor in it can be inferred, and,
    where the shapes of all inputs are fixed, that every shape is.

    Raises:
        GateError: it is not; that is a fault of pulse-edge or of torch's exporter, not of the user.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model, types, shapes = infer(path)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _invalid(path, " ".join(str(error).split())[:300]) from error
    made = [name for node in model.graph.node for name in node.output if name]
    unknown = [name for name in made if name not in types]
    if unknown:
        raise _invalid(path, f"the type or rank of {unknown[0]!r} cannot be inferred")
    fixed = all(isinstance(n, int) for value in model.graph.input for n in shapes[value.name])
    open_ended = [name for name in made if fixed and not all(isinstance(n, int) for n in shapes[name])]
    if open_ended:
        raise _invalid(path, f"the shape of {open_ended[0]!r} is {shapes[open_ended[0]]}, not fixed")


def _invalid(path: Path, why: str) -> GateError:
    return GateError(
        f"The exported {path.name} is not valid ONNX: {why}. The bundle was not kept. "
        "Install the tested versions of torch and onnx: pip install --upgrade 'pulse-edge[export]'"
    )
