"""From a block of the program to a list of steps: constants folded, arguments resolved, lifetimes known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pulse_edge.errors import BundleError
from pulse_edge.export.milrun.dtypes import TensorType
from pulse_edge.export.milrun.registry import OPS, Op
from pulse_edge.export.milrun.steps import (
    ComputeStep,
    CondStep,
    Graph,
    Output,
    ReadState,
    Step,
    WhileStep,
    WriteState,
)
from pulse_edge.export.milrun.values import Constant, ConstantReader, tensor_type

Sources = dict[str, list[str | Constant]]


@dataclass
class Scope:
    """What an op may read: constants, and names that have a value by then."""

    constants: dict[str, Constant]
    values: set[str]

    def __post_init__(self) -> None:
        self.constants = dict(self.constants)

    def find(self, name: str, where: str) -> str | Constant:
        """Return the constant of a name, or the name if it has a value.

        Raises:
            BundleError: it has none.
        """
        if name not in self.constants and name not in self.values:
            raise BundleError(f"{where} reads {name}, which has no value. Copy or export the package again.")
        return self.constants.get(name, name)


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

    def plan(self, block: Any, visible: Iterable[str], outer: Scope | None = None) -> Graph:
        """Plan a block and those within it.

        Args:
            block: the message.
            visible: names that have a value when it begins, beside its own inputs.
            outer: constants of the blocks around it.

        Raises:
            BundleError: an op has arguments that it should not have, lacks some, or reads what is not there.
        """
        scope = Scope(outer.constants if outer else {}, {*visible, *(named.name for named in block.inputs)})
        steps: list[tuple[Step, set[str]]] = []  # with the names that each needs
        defined: set[str] = {named.name for named in block.inputs}
        for operation in block.operations:
            made = self._operation(operation, scope)
            names = {out.name for out in operation.outputs}
            scope.values |= names
            if made is not None:
                steps.append(made)
                defined |= names
        outputs = [scope.find(name, f"The output of the function {self.function}") for name in block.outputs]
        return Graph([i.name for i in block.inputs], _lifetimes(steps, defined, outputs), outputs)

    def _operation(self, operation: Any, scope: Scope) -> tuple[Step, set[str]] | None:
        """Plan one operation; None if it is a constant, which is put into the scope."""
        first = operation.outputs[0].name if operation.outputs else "(no output)"
        where = f"The op {operation.type} ({first}) of the function {self.function}"
        sources = {name: self._sources(arg, scope, where) for name, arg in operation.inputs.items()}
        if operation.type == "const":
            value = dict(operation.attributes).get("val")
            if value is None:
                raise BundleError(f"{where} has no value. Copy or export the package again.")
            if value.type.WhichOneof("type") == "tensorType":  # lists of class names are left to their op
                scope.constants[first] = self.reader.read(value, first)
            return None
        if operation.type in SPECIAL:
            return SPECIAL[operation.type](self, operation, sources, scope, where)
        for name, attribute in operation.attributes.items():  # before iOS 18, constexpr ops keep all there
            if name != "name" and operation.type.startswith("constexpr_"):
                sources[name] = [self.reader.read(attribute, f"{first}.{name}")]
        if operation.type not in OPS:
            self.unsupported.append(f"{operation.type} ({first})")
            return None
        return self._compute(operation, sources, scope, where)

    def _sources(self, argument: Any, scope: Scope, where: str) -> list[str | Constant]:
        found: list[str | Constant] = []
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "value":
                if binding.value.type.WhichOneof("type") == "tensorType":
                    found.append(self.reader.read(binding.value, where))
            else:
                held = binding.name in self.states
                found.append(binding.name if held else scope.find(binding.name, where))
        return found

    def _compute(
        self, operation: Any, sources: Sources, scope: Scope, where: str
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

    def _fold(self, step: ComputeStep, sources: Sources, scope: Scope) -> None:
        """Compute an op of constants now, unless the same was computed before, in whichever function."""
        arguments = {
            parameter: [s for s in listed if isinstance(s, Constant)] for parameter, listed in sources.items()
        }
        keys = [(p, tuple(c.key for c in listed)) for p, listed in sorted(arguments.items())]
        known = all(key is not None for _, listed in keys for key in listed)
        names = [(step.op.name, tuple(keys), out.type, i) for i, out in enumerate(step.outputs)]
        earlier = [self.reader.known(name) for name in names] if known else []
        if earlier and all(earlier):
            found = zip(step.outputs, earlier, strict=True)
            scope.constants.update((out.name, constant) for out, constant in found if constant is not None)
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
            scope.constants[output.name] = self.reader.share(made)

    def read_state(self, operation: Any, sources: Sources, scope: Scope, where: str) -> tuple[Step, set[str]]:
        """Plan ``read_state``."""
        state = self._state(sources, "input", where)
        return ReadState(state, operation.outputs[0].name), set()

    def write_state(
        self, operation: Any, sources: Sources, scope: Scope, where: str
    ) -> tuple[Step, set[str]]:
        """Plan ``write_state`` or ``coreml_update_state``."""
        holder, value = ("input", "data") if operation.type == "write_state" else ("state", "value")
        state = self._state(sources, holder, where)
        if len(sources.get(value, [])) != 1:
            raise BundleError(f"{where} lacks the argument {value}. Check the conversion.")
        (source,) = sources[value]
        output = operation.outputs[0].name if operation.outputs else None
        needs = {source} if isinstance(source, str) else set()
        return WriteState(state, source, self.states[state], where, output), needs

    def _state(self, sources: Sources, parameter: str, where: str) -> str:
        found = sources.get(parameter, [])
        if len(found) != 1 or isinstance(found[0], Constant) or found[0] not in self.states:
            raise BundleError(f"{where} names no state of its function. Check the conversion.")
        return found[0]

    def cond(self, operation: Any, sources: Sources, scope: Scope, where: str) -> tuple[Step, set[str]]:
        """Plan ``cond``."""
        if len(operation.blocks) != 2 or len(sources.get("pred", [])) != 1:
            raise BundleError(f"{where} is not a condition with two blocks. Check the conversion.")
        then, other = (self.plan(block, scope.values, scope) for block in operation.blocks)
        (pred,) = sources["pred"]
        step = CondStep(pred, (then, other), [out.name for out in operation.outputs])
        return step, _captured(operation.blocks) | ({pred} if isinstance(pred, str) else set())

    def while_loop(self, operation: Any, sources: Sources, scope: Scope, where: str) -> tuple[Step, set[str]]:
        """Plan ``while_loop``."""
        start = sources.get("loop_vars", [])
        if len(operation.blocks) != 2 or any(len(b.inputs) != len(start) for b in operation.blocks):
            raise BundleError(f"{where} is not a loop with a condition and a body. Check the conversion.")
        condition, body = (self.plan(block, scope.values, scope) for block in operation.blocks)
        step = WhileStep(start, condition, body, [out.name for out in operation.outputs])
        return step, _captured(operation.blocks) | {s for s in start if isinstance(s, str)}


SPECIAL: dict[str, Callable[[Planner, Any, Sources, Scope, str], tuple[Step, set[str]]]] = {
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
