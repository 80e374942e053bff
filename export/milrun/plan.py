"""From a block of the program to a list of steps: constants folded, arguments resolved, lifetimes known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from pulse_edge.errors import BundleError, PulseEdgeError
from pulse_edge.export.milrun.dtypes import TensorType
from pulse_edge.export.milrun.registry import OPS, Op, Tensor, hand_over
from pulse_edge.export.milrun.values import Constant, ConstantReader, tensor_type

Observer = Callable[[str, str, str, list[Tensor], float], None]  # op, family, output, results, seconds


@dataclass
class Frame:
    """What a run works on: the tensors alive, the states as they stand, and who watches."""

    values: dict[str, Tensor]
    states: dict[str, Tensor]
    observe: Observer | None = None


class Step(Protocol):
    """One operation, ready to run."""

    def run(self, frame: Frame) -> None:
        """Compute its outputs and put them into ``frame.values``."""


@dataclass
class Graph:
    """A planned block.

    Attributes:
        inputs: names that the caller puts into the frame.
        steps: with, for each, the names that are not needed after it.
        outputs: names, or constants where the block returns one.
    """

    inputs: list[str]
    steps: list[tuple[Step, list[str]]]
    outputs: list[str | Constant]

    def run(self, frame: Frame) -> list[Tensor]:
        """Run every step; return the outputs."""
        values = frame.values
        for step, dead in self.steps:
            step.run(frame)
            for name in dead:
                values.pop(name, None)
        return [out.tensor() if isinstance(out, Constant) else values[out] for out in self.outputs]


@dataclass(frozen=True)
class Output:
    """A declared result: its name, its type, and whether it is rounded to half precision."""

    name: str
    type: TensorType
    rounded: bool


@dataclass
class ComputeStep:
    """An ordinary op: constant arguments are fixed, the others are looked up by name."""

    op: Op
    where: str
    fixed: dict[str, Any]
    bound: list[tuple[str, str, str]]  # parameter, kind, name
    listed: list[tuple[str, list[str | Constant]]]  # parameter, names or constants of its tensors
    outputs: list[Output]

    def run(self, frame: Frame) -> None:
        """Compute the op."""
        start = time.perf_counter() if frame.observe else 0.0
        values = frame.values
        arguments = dict(self.fixed)
        for parameter, kind, name in self.bound:
            arguments[parameter] = hand_over(kind, values[name])
        for parameter, names in self.listed:
            arguments[parameter] = [n.tensor() if isinstance(n, Constant) else values[n] for n in names]
        results = self.compute(arguments)
        for output, result in zip(self.outputs, results, strict=True):
            values[output.name] = result
        if frame.observe:
            seconds = time.perf_counter() - start
            frame.observe(self.op.name, self.op.family, self.outputs[0].name, results, seconds)

    def compute(self, arguments: dict[str, Any]) -> list[Any]:
        """Call the op's function, round its results and hold them against the declared types."""
        try:
            result = self.op.function(**arguments)
        except PulseEdgeError as error:
            raise type(error)(f"{self.where}: {error}") from error
        except Exception as error:  # torch raises whatever it likes
            reason = " ".join(str(error).split())[:200]
            raise BundleError(f"{self.where} cannot be computed: {reason}. Check the conversion.") from error
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        if len(results) != len(self.outputs):
            raise BundleError(
                f"{self.where} declares {len(self.outputs)} outputs where the op has {len(results)}. "
                "Check the conversion."
            )
        for i, output in enumerate(self.outputs):
            value = results[i]
            if output.rounded:
                value = results[i] = value.to(torch.float16).to(torch.float32)
            elif isinstance(value, Tensor) and value.dtype != output.type.dtype.computed:
                value = results[i] = value.to(output.type.dtype.computed)
            if not output.type.admits(tuple(value.shape)):
                raise BundleError(
                    f"{self.where} gives {output.name} the shape {list(value.shape)}, but the program "
                    f"declares {output.type}. Check the conversion."
                )
        return results


@dataclass
class ReadState:
    """``read_state``: results share memory, since no op writes into its arguments."""

    state: str
    output: str

    def run(self, frame: Frame) -> None:
        """Give the state's present content a name."""
        frame.values[self.output] = frame.states[self.state]


@dataclass
class WriteState:
    """``write_state``, and ``coreml_update_state``, which also names what was written."""

    state: str
    source: str | Constant
    type: TensorType
    where: str
    output: str | None = None

    def run(self, frame: Frame) -> None:
        """Replace the state's content."""
        value = self.source.tensor() if isinstance(self.source, Constant) else frame.values[self.source]
        if not self.type.admits(tuple(value.shape)):
            raise BundleError(
                f"{self.where} writes the shape {list(value.shape)} into the state {self.state} of "
                f"{self.type}. Check the conversion."
            )
        frame.states[self.state] = value
        if self.output:
            frame.values[self.output] = value


@dataclass
class CondStep:
    """``cond``: one of two blocks that see the values around them."""

    predicate: str | Constant
    branches: tuple[Graph, Graph]
    outputs: list[str]

    def run(self, frame: Frame) -> None:
        """Run the block that the predicate chooses."""
        pred = self.predicate
        value = pred.tensor() if isinstance(pred, Constant) else frame.values[pred]
        results = self.branches[0 if bool(value) else 1].run(frame)
        frame.values.update(zip(self.outputs, results, strict=True))


@dataclass
class WhileStep:
    """``while_loop``: a block that says whether to go on, and one that makes the next values."""

    start: list[str | Constant]
    condition: Graph
    body: Graph
    outputs: list[str]

    def run(self, frame: Frame) -> None:
        """Repeat the body while the condition holds."""
        state = [s.tensor() if isinstance(s, Constant) else frame.values[s] for s in self.start]
        while True:
            frame.values.update(zip(self.condition.inputs, state, strict=True))
            if not bool(self.condition.run(frame)[0]):
                break
            frame.values.update(zip(self.body.inputs, state, strict=True))
            state = self.body.run(frame)
        frame.values.update(zip(self.outputs, state, strict=True))


@dataclass
class Planner:
    """Plans the blocks of one function.

    Attributes:
        function: its name, for messages.
        reader: of constants.
        half: whether results declared fp16 are rounded to it.
        states: the types of the function's states.
        unsupported: ops that milrun lacks, one line each; gathered so that one error names them all.
    """

    function: str
    reader: ConstantReader
    half: bool
    states: dict[str, TensorType]
    unsupported: list[str] = field(default_factory=list)

    def plan(self, block: Any, outer: dict[str, Constant] | None = None) -> Graph:
        """Plan a block and those within it.

        Args:
            block: the message.
            outer: constants of the blocks around it.

        Raises:
            BundleError: an op has arguments that it should not have, or lacks some.
        """
        scope = dict(outer or {})
        steps: list[tuple[Step, set[str]]] = []  # with the names that each needs
        defined: set[str] = {named.name for named in block.inputs}
        for operation in block.operations:
            made = self._operation(operation, scope)
            if made is not None:
                steps.append(made)
                defined.update(out.name for out in operation.outputs)
        outputs = [scope.get(name, name) for name in block.outputs]
        return Graph([i.name for i in block.inputs], _lifetimes(steps, defined, outputs), outputs)

    def _operation(self, operation: Any, scope: dict[str, Constant]) -> tuple[Step, set[str]] | None:
        """Plan one operation; None if it is a constant, which is put into the scope."""
        first = operation.outputs[0].name if operation.outputs else "(no output)"
        where = f"The op {operation.type} ({first}) of the function {self.function}"
        sources = {name: self._sources(arg, scope, where) for name, arg in operation.inputs.items()}
        if operation.type == "const":
            value = dict(operation.attributes).get("val")
            if value is None:
                raise BundleError(f"{where} has no value. Copy or export the package again.")
            if value.type.WhichOneof("type") == "tensorType":  # lists of class names are left to their op
                scope[first] = self.reader.read(value, first)
            return None
        if operation.type in _SPECIAL:
            return _SPECIAL[operation.type](self, operation, sources, scope, where)
        for name, attribute in operation.attributes.items():  # before iOS 18, constexpr ops keep all there
            if name != "name" and operation.type.startswith("constexpr_"):
                sources[name] = [self.reader.read(attribute, f"{first}.{name}")]
        if operation.type not in OPS:
            self.unsupported.append(f"{operation.type} ({first})")
            return None
        return self._compute(operation, sources, scope, where)

    def _sources(self, argument: Any, scope: dict[str, Constant], where: str) -> list[str | Constant]:
        found: list[str | Constant] = []
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "value":
                if binding.value.type.WhichOneof("type") == "tensorType":
                    found.append(self.reader.read(binding.value, where))
            else:
                found.append(scope.get(binding.name, binding.name))
        return found

    def _compute(
        self, operation: Any, sources: dict[str, list[str | Constant]], scope: dict[str, Constant], where: str
    ) -> tuple[Step, set[str]] | None:
        op = OPS[operation.type]
        unknown, missing = sorted(sources.keys() - op.kinds), sorted(op.required - sources.keys())
        if unknown or missing:
            what = (
                f"has the argument {unknown[0]}, unknown" if unknown else f"lacks the argument {missing[0]}"
            )
            raise BundleError(f"{where} {what} to milrun. Convert it for an iOS that milrun knows, up to 18.")
        outputs = [self._output(out, op) for out in operation.outputs]
        constant = all(isinstance(s, Constant) for listed in sources.values() for s in listed)
        step = ComputeStep(op, where, {}, [], [], outputs)
        for parameter, listed in sources.items():
            kind = op.kinds[parameter]
            if kind == "Tensors":
                step.listed.append((parameter, listed))
            elif len(listed) != 1:
                if listed or parameter in op.required:
                    raise BundleError(
                        f"{where} has {len(listed)} values for {parameter}. Check the conversion."
                    )
            elif isinstance(listed[0], Constant):
                if not constant:
                    step.fixed[parameter] = listed[0].as_kind(kind)
            elif kind == "Array":
                raise BundleError(f"{where} needs a constant for {parameter}. Check the conversion.")
            else:
                step.bound.append((parameter, kind, listed[0]))
        if constant:
            self._fold(step, sources, scope)
            return None
        return step, {s for listed in sources.values() for s in listed if isinstance(s, str)}

    def _output(self, named: Any, op: Op) -> Output:
        declared = tensor_type(named.type, named.name)
        rounded = self.half and declared.dtype.name == "fp16" and not op.moves
        return Output(named.name, declared, rounded)

    def _fold(
        self, step: ComputeStep, sources: dict[str, list[str | Constant]], scope: dict[str, Constant]
    ) -> None:
        """Compute an op of constants now, unless the same was computed before, in whichever function."""
        arguments = {
            parameter: [s for s in listed if isinstance(s, Constant)] for parameter, listed in sources.items()
        }
        keys = [(p, tuple(c.key for c in listed)) for p, listed in sorted(arguments.items())]
        known = all(key is not None for _, listed in keys for key in listed)
        names = [(step.op.name, tuple(keys), out.type, i) for i, out in enumerate(step.outputs)]
        earlier = [self.reader.known(name) for name in names] if known else []
        if earlier and all(earlier):
            scope.update((o.name, c) for o, c in zip(step.outputs, earlier, strict=True) if c is not None)
            return
        kinds = step.op.kinds
        given = {
            parameter: [c.tensor() for c in listed]
            if kinds[parameter] == "Tensors"
            else listed[0].as_kind(kinds[parameter])
            for parameter, listed in arguments.items()
            if listed
        }
        for output, name, result in zip(step.outputs, names, step.compute(given), strict=True):
            made = Constant(output.type.dtype, result, name if known else None)
            scope[output.name] = self.reader.share(made)

    def read_state(self, operation: Any, sources: Any, scope: Any, where: str) -> tuple[Step, set[str]]:
        """Plan ``read_state``."""
        state = self._state(sources, "input", where)
        return ReadState(state, operation.outputs[0].name), set()

    def write_state(self, operation: Any, sources: Any, scope: Any, where: str) -> tuple[Step, set[str]]:
        """Plan ``write_state`` or ``coreml_update_state``."""
        holder, value = ("input", "data") if operation.type == "write_state" else ("state", "value")
        state = self._state(sources, holder, where)
        if len(sources.get(value, [])) != 1:
            raise BundleError(f"{where} lacks the argument {value}. Check the conversion.")
        (source,) = sources[value]
        output = operation.outputs[0].name if operation.outputs else None
        needs = {source} if isinstance(source, str) else set()
        return WriteState(state, source, self.states[state], where, output), needs

    def _state(self, sources: Any, parameter: str, where: str) -> str:
        found = sources.get(parameter, [])
        if len(found) != 1 or found[0] not in self.states:
            raise BundleError(f"{where} names no state of its function. Check the conversion.")
        return str(found[0])

    def cond(self, operation: Any, sources: Any, scope: Any, where: str) -> tuple[Step, set[str]]:
        """Plan ``cond``."""
        if len(operation.blocks) != 2 or len(sources.get("pred", [])) != 1:
            raise BundleError(f"{where} is not a condition with two blocks. Check the conversion.")
        then, other = (self.plan(block, scope) for block in operation.blocks)
        (pred,) = sources["pred"]
        step = CondStep(pred, (then, other), [out.name for out in operation.outputs])
        return step, _captured(operation.blocks) | ({pred} if isinstance(pred, str) else set())

    def while_loop(self, operation: Any, sources: Any, scope: Any, where: str) -> tuple[Step, set[str]]:
        """Plan ``while_loop``."""
        start = sources.get("loop_vars", [])
        if len(operation.blocks) != 2 or any(len(b.inputs) != len(start) for b in operation.blocks):
            raise BundleError(f"{where} is not a loop with a condition and a body. Check the conversion.")
        condition, body = (self.plan(block, scope) for block in operation.blocks)
        step = WhileStep(start, condition, body, [out.name for out in operation.outputs])
        return step, _captured(operation.blocks) | {s for s in start if isinstance(s, str)}


_SPECIAL: dict[str, Callable[[Planner, Any, Any, Any, str], tuple[Step, set[str]]]] = {
    "read_state": Planner.read_state,
    "write_state": Planner.write_state,
    "coreml_update_state": Planner.write_state,
    "cond": Planner.cond,
    "while_loop": Planner.while_loop,
}


def _captured(blocks: Iterable[Any]) -> set[str]:
    """Every name that blocks mention, those of the blocks around them among them."""
    names: set[str] = set()
    for block in blocks:
        names.update(block.outputs)
        for operation in block.operations:
            for argument in operation.inputs.values():
                names.update(binding.name for binding in argument.arguments)
            names |= _captured(operation.blocks)
    return names


def _lifetimes(
    steps: list[tuple[Step, set[str]]], defined: set[str], outputs: list[str | Constant]
) -> list[tuple[Step, list[str]]]:
    """Say for each step which names of this block nothing reads after it."""
    last: dict[str, int] = {}
    for i, (_, needs) in enumerate(steps):
        last.update(dict.fromkeys(needs & defined, i))
    dead: list[list[str]] = [[] for _ in steps]
    for name, i in last.items():
        if name not in outputs:
            dead[i].append(name)
    return [(step, names) for (step, _), names in zip(steps, dead, strict=True)]
