"""A package on disk, opened: its description, its functions planned when first needed, and running them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pulse_edge.errors import BundleError, MissingExtraError, PulseEdgeError, UnknownNameError, UserError
from pulse_edge.export.milrun import ops  # noqa: F401  (fills the registry)
from pulse_edge.export.milrun.dtypes import TensorType
from pulse_edge.export.milrun.features import Feature, read_feature
from pulse_edge.export.milrun.plan import Planner
from pulse_edge.export.milrun.steps import Frame, Graph, Observer
from pulse_edge.export.milrun.values import ConstantReader, tensor_type

PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class _Function:
    """A function's description and, once planned, its graph."""

    inputs: dict[str, Feature]
    outputs: dict[str, Feature]
    states: dict[str, Feature]
    message: Any


class Package:
    """An ML Program, ready to run; made by :func:`pulse_edge.export.milrun.load_package`.

    Args:
        path: of the ``.mlpackage`` folder.
        precision: ``"fp32"`` computes everything in float32, halves too; ``"fp16"`` rounds every result that
            the program declares fp16, and fp16 inputs.

    Attributes:
        functions: names.
        default: the function that runs when none is named.
        metadata: what the package says of itself: author, licence, version, and the user's own keys.
    """

    def __init__(self, path: Path, precision: str = "fp32") -> None:
        if precision not in PRECISIONS:
            raise UnknownNameError("precision", precision, PRECISIONS)
        self.path, self.precision = Path(path), precision
        self._half = precision == "fp16"
        model = _model_file(self.path)
        self._reader = ConstantReader(model.parent)
        spec = _parse(model)
        self.metadata = _metadata(spec.description.metadata)
        self._functions = dict(_functions(spec, self.path))
        self.functions = list(self._functions)
        self.default = spec.description.defaultFunctionName or self.functions[0]
        self._graphs: dict[str, Graph] = {}

    def inputs(self, function: str | None = None) -> dict[str, Feature]:
        """Return what a function takes, by name, without its states."""
        return dict(self._of(function).inputs)

    def outputs(self, function: str | None = None) -> dict[str, Feature]:
        """Return what a function gives, by name."""
        return dict(self._of(function).outputs)

    def states(self, function: str | None = None) -> dict[str, Feature]:
        """Return the states that a function reads and writes, by name."""
        return dict(self._of(function).states)

    def operations(self, function: str | None = None) -> Counter[str]:
        """Count a function's ops by type, constants left out."""
        block = _block(self._of(function).message, function or self.default)
        return Counter(operation.type for operation in _walk(block) if operation.type != "const")

    def new_state(self, function: str | None = None) -> dict[str, NDArray[Any]]:
        """Return empty states: zeros, float16 if the package rounds and they are declared so.

        Raises:
            BundleError: a state is declared larger than memory.
        """
        states = self._of(function).states
        try:
            return {name: np.zeros(state.shape, self._state_dtype(state)) for name, state in states.items()}
        except (MemoryError, ValueError) as error:
            raise BundleError(
                f"A state of {self.path} is declared larger than the memory here ({error}). "
                "Copy or export the package again."
            ) from error

    def run(
        self,
        function: str | None,
        inputs: Mapping[str, Any],
        state: dict[str, NDArray[Any]] | None = None,
        observe: Observer | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Run a function once.

        Args:
            function: its name; None for the default.
            inputs: by name: arrays of the declared type and shape; pictures as Pillow images or uint8 RGB.
            state: of :meth:`new_state`; changed in place, and only if the run ends well. May be carried
                from one function to another.
            observe: called after every op with its type, family, first output, results and seconds.

        Returns:
            Outputs by name, of the declared types; fp16 ones as float32 in the precision fp32.

        Raises:
            UserError: an input or a state is missing, unknown, or not as declared.
            BundleError: the package is damaged, or its program contradicts itself.
            PulseEdgeError: the function has an op that milrun lacks.
        """
        called = self._of(function)
        graph = self.plan(function)
        frame = Frame(self._feed(called, inputs), self._states(called, state or {}), observe)
        before = dict(frame.states)
        with torch.inference_mode():
            results = graph.run(frame)
            outputs = {
                name: feature.from_tensor(result, self._half)
                for (name, feature), result in zip(called.outputs.items(), results, strict=True)
            }
        for name, tensor in frame.states.items():
            if state is not None and tensor is not before[name]:
                state[name][...] = tensor.numpy()
        return outputs

    def plan(self, function: str | None = None) -> Graph:
        """Decode a function's weights and plan its ops, once.

        Raises:
            BundleError: the package is damaged.
            PulseEdgeError: the function has ops that milrun lacks; the message names them.
        """
        name = function or self.default
        if name not in self._graphs:
            called = self._of(function)
            types: dict[str, TensorType] = {
                item.name: tensor_type(item.type, item.name)
                for item in called.message.inputs
                if item.type.WhichOneof("type") == "stateType"
            }
            odd = types.keys() ^ called.states.keys()
            if odd:
                raise BundleError(
                    f"The function {name} of {self.path} has the state {min(odd)} in its program or its "
                    "description only. Copy or export the package again."
                )
            planner = Planner(name, self._reader, self._half, types)
            with torch.inference_mode():
                graph = planner.plan(_block(called.message, name), called.inputs)
            if planner.unsupported:
                kinds = sorted(set(planner.unsupported))
                more = f" and {len(kinds) - 5} more" if len(kinds) > 5 else ""
                raise PulseEdgeError(
                    f"The function {name} of {self.path} has ops that milrun cannot execute: "
                    f"{', '.join(kinds[:5])}{more}. docs/milrun.md lists those that it can."
                )
            graph.outputs = self._ordered(graph, called, name)
            self._graphs[name] = graph
        return self._graphs[name]

    def _ordered(self, graph: Graph, called: _Function, name: str) -> list[Any]:
        """Bring a graph's outputs into the order of the description, which may be another."""
        written = dict(zip(_block(called.message, name).outputs, graph.outputs, strict=True))
        missing = called.outputs.keys() - written.keys()
        if missing:
            raise BundleError(
                f"The function {name} of {self.path} lacks its output {min(missing)}. Export again."
            )
        return [written[output] for output in called.outputs]

    def _of(self, function: str | None) -> _Function:
        name = function or self.default
        if name not in self._functions:
            raise UnknownNameError("function", name, self.functions)
        return self._functions[name]

    def _state_dtype(self, state: Feature) -> str:
        return "float32" if state.dtype == "float16" and not self._half else state.dtype

    def _feed(self, called: _Function, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        unknown = [name for name in inputs if name not in called.inputs]
        if unknown:
            raise UnknownNameError("input", unknown[0], called.inputs)
        values = {}
        for name, feature in called.inputs.items():
            if name in inputs:
                value = feature.to_tensor(inputs[name])
            elif feature.optional:
                value = feature.filled()
            else:
                raise UserError(f"The input {name} is missing: {feature.dtype} {feature.allowed()}. Give it.")
            if self._half and feature.dtype == "float16":
                value = value.to(torch.float16).to(torch.float32)
            values[name] = value
        return values

    def _states(self, called: _Function, given: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
        states = {}
        for name, feature in called.states.items():
            array = given.get(name)
            if array is None:
                raise UserError(f"The state {name} is missing. Make the states with new_state().")
            if array.shape != feature.shape:
                raise UserError(
                    f"The state {name} has the shape {list(array.shape)}, not {list(feature.shape)}. "
                    "Make the states with new_state()."
                )
            kind = torch.float32 if feature.dtype.startswith("float") else torch.int32
            # a copy: the run must not see the arrays change, nor change them before it ends well
            states[name] = torch.tensor(array).to(kind)
        return states


def _model_file(path: Path) -> Path:
    """Return the model file that a package's manifest names."""
    manifest = path / "Manifest.json"
    if not manifest.is_file():
        raise BundleError(f"{path} is not an .mlpackage: it has no Manifest.json. Give the package's folder.")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        item = str(content["itemInfoEntries"][content["rootModelIdentifier"]]["path"])
        model = path / "Data" / item
        inside = model.resolve().is_relative_to(path.resolve())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{manifest} is damaged ({error!r}). Copy or export the package again.") from error
    if not inside or not model.is_file():
        raise BundleError(f"{path} lacks its model file {item}. Copy or export the package again.")
    return model


def _parse(model: Path) -> Any:
    """Read the protobuf of a model file."""
    try:
        logging.getLogger("coremltools").setLevel(logging.ERROR)  # it says on import what a Mac would have
        from coremltools.proto import Model_pb2
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise MissingExtraError(error.name or "coremltools", "coreml") from error
    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(model.read_bytes())
    except (DecodeError, OSError) as error:
        raise BundleError(f"{model} is damaged ({error}). Copy or export the package again.") from error
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise BundleError(
            f"{model} holds a {kind or 'model without a type'}, not an ML Program. "
            "Convert it with a deployment target of iOS 15 or later."
        )
    return spec


def _functions(spec: Any, path: Path) -> Iterator[tuple[str, _Function]]:
    described = list(spec.description.functions) or [spec.description]
    for description in described:
        name = getattr(description, "name", "") or "main"
        if name not in spec.mlProgram.functions:
            raise BundleError(f"{path} describes a function {name} that its program lacks. Export it again.")
        read = [
            {item.name: read_feature(item, f"the function {name} of {path}") for item in features}
            for features in (description.input, description.output, description.state)
        ]
        yield name, _Function(read[0], read[1], read[2], spec.mlProgram.functions[name])


def _block(message: Any, name: str) -> Any:
    """Return the block of a function that its opset chooses."""
    blocks = message.block_specializations
    if message.opset not in blocks:
        raise BundleError(f"The function {name} has no block for its opset {message.opset}. Export it again.")
    return blocks[message.opset]


def _walk(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _walk(inner)


def _metadata(metadata: Any) -> dict[str, str]:
    named = {
        "author": metadata.author,
        "licence": metadata.license,
        "version": metadata.versionString,
        "description": metadata.shortDescription,
    }
    return {**{key: text for key, text in named.items() if text}, **dict(metadata.userDefined)}
