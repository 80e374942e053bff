"""A planned function: its steps, what they work on, and how they run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pulse_edge.errors import BundleError, PulseEdgeError
from pulse_edge.export.milrun.dtypes import TensorType
from pulse_edge.export.milrun.registry import Op, Tensor, hand_over
from pulse_edge.export.milrun.values import Constant

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
