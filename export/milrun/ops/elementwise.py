"""Elementwise ops of one, two and three tensors; broadcasting is numpy's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from pulse_edge.errors import BundleError
from pulse_edge.export.milrun.dtypes import BY_NAME
from pulse_edge.export.milrun.registry import Tensor, op, register

UNARY: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "round": torch.round,  # halves to the even neighbour
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}


def _real_div(x: Tensor, y: Tensor) -> Tensor:
    """Quotient; of integers, an integer, as the type of both must be that of the result."""
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


BINARY: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,  # of the divisor's sign
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "real_div": _real_div,
    "sub": torch.sub,
}


def _register_unary(name: str, compute: Callable[[Tensor], Tensor]) -> None:
    def apply(x: Tensor) -> Tensor:
        return compute(x)

    register(name, apply)


def _register_binary(name: str, compute: Callable[[Tensor, Tensor], Tensor]) -> None:
    def apply(x: Tensor, y: Tensor) -> Tensor:
        return compute(x, y)

    register(name, apply)


for _name, _unary in UNARY.items():
    _register_unary(_name, _unary)
for _name, _binary in BINARY.items():
    _register_binary(_name, _binary)


@op()
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return torch.reciprocal(x + epsilon)


@op()
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return torch.rsqrt(x + epsilon)


@op()
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """Natural logarithm of x + epsilon."""
    return torch.log(x + epsilon)


@op()
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Values kept within [alpha, beta]."""
    return torch.clamp(x, alpha, beta)


@op()
def threshold(x: Tensor, alpha: float) -> Tensor:
    """Values raised to alpha at least."""
    return torch.clamp(x, min=alpha)


@op(moves=True)
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``a`` where the condition holds, ``b`` elsewhere."""
    return torch.where(cond.bool(), a, b)


@op()
def cast(x: Tensor, dtype: str) -> Tensor:
    """Values as another type: reals to integers towards zero, integers into fewer bits by wrapping."""
    if dtype not in BY_NAME or dtype == "string":
        raise BundleError(f"there is no type {dtype!r} to cast to")
    wanted = BY_NAME[dtype]
    if wanted.floating or dtype in ("bool", "int32", "int64", "uint64"):
        return x.to(wanted.computed)
    wide = x.to(torch.int64)
    span = 1 << wanted.bits
    if dtype.startswith("uint"):
        return (wide % span).to(wanted.computed)
    return ((wide + span // 2) % span - span // 2).to(wanted.computed)
