"""The table of ops: a Python function per op, whose signature is the op's schema.

A parameter's annotation says how the executor hands it over (``Tensor``, ``Tensors``, ``Array``, ``Arrays``,
``Ints``, ``Bools``, ``int``, ``float``, ``bool``, ``str``), its default is MIL's own. What is constant is
converted once, when a function is planned.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from numpy.typing import NDArray

Tensor = torch.Tensor
Tensors = list[torch.Tensor]
Array = NDArray[Any]
Ints = list[int]
Bools = list[bool]
F = TypeVar("F", bound=Callable[..., Any])

OPS: Final[dict[str, Op]] = {}
KINDS: Final = {"Tensor", "Tensors", "Array", "Ints", "Bools", "int", "float", "bool", "str"}


@dataclass(frozen=True)
class Op:
    """One op.

    Attributes:
        name: its type in the program.
        family: the module that holds it, for the benchmark's table.
        function: computes it; returns a tensor, or a tuple for an op with several outputs.
        kinds: parameter name → one of ``KINDS``.
        required: the parameters without a default.
        moves: whether it only moves values, so that its result never needs rounding.
    """

    name: str
    family: str
    function: Callable[..., Any]
    kinds: dict[str, str]
    required: frozenset[str]
    moves: bool


def register(name: str, function: Callable[..., Any], moves: bool = False) -> None:
    """Enter a function as the op ``name``."""
    kinds, required = {}, set()
    for parameter in inspect.signature(function).parameters.values():
        kind = str(parameter.annotation).removesuffix(" | None")
        if kind not in KINDS:
            raise TypeError(f"{name}: the parameter {parameter.name} has the unknown kind {kind!r}")
        kinds[parameter.name] = kind
        if parameter.default is inspect.Parameter.empty:
            required.add(parameter.name)
    family = function.__module__.rpartition(".")[2]
    OPS[name] = Op(name, family, function, kinds, frozenset(required), moves)


def op(*names: str, moves: bool = False) -> Callable[[F], F]:
    """Register the decorated function as the op of its own name, or as each of ``names``."""

    def decorate(function: F) -> F:
        for name in names or (function.__name__.rstrip("_"),):
            register(name, function, moves)
        return function

    return decorate


def hand_over(kind: str, value: Any) -> Any:
    """Convert a tensor, or an array of a constant, to what a parameter of ``kind`` takes."""
    if kind in ("Tensor", "Array"):
        return value
    flat = value.reshape(-1).tolist()
    if kind == "Ints":
        return [int(item) for item in flat]
    if kind == "Bools":
        return [bool(item) for item in flat]
    (item,) = flat  # a scalar, or a vector of one
    return {"int": int, "float": float, "bool": bool, "str": str}[kind](item)


def as_array(tensor: Tensor) -> Array:
    """Return a tensor as a numpy array on the same memory."""
    return tensor.numpy()
