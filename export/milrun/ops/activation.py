"""Activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch.nn import functional

from pulse_edge.errors import BundleError
from pulse_edge.export.milrun.registry import Tensor, op, register

PLAIN: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "relu": torch.relu,
    "relu6": functional.relu6,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),  # torch's own turns linear at 20
    "softsign": functional.softsign,
}
WITH_ALPHA: Final[dict[str, Callable[[Tensor, float], Tensor]]] = {
    "elu": lambda x, alpha: torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0))),
    "leaky_relu": functional.leaky_relu,
    "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, torch.zeros_like(x)),
}
WITH_ALPHA_AND_BETA: Final[dict[str, Callable[[Tensor, float, float], Tensor]]] = {
    "clamped_relu": lambda x, alpha, beta: torch.where(x >= 0, x, alpha * x).clamp(max=beta),
    "linear_activation": lambda x, alpha, beta: alpha * x + beta,
    "scaled_tanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "sigmoid_hard": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
}
GELU: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "EXACT": functional.gelu,
    "TANH_APPROXIMATION": lambda x: functional.gelu(x, approximate="tanh"),
    "SIGMOID_APPROXIMATION": lambda x: x * torch.sigmoid(1.702 * x),
}


def _register_plain(name: str, compute: Callable[[Tensor], Tensor]) -> None:
    def apply(x: Tensor) -> Tensor:
        return compute(x)

    register(name, apply)


def _register_alpha(name: str, compute: Callable[[Tensor, float], Tensor]) -> None:
    def apply(x: Tensor, alpha: float) -> Tensor:
        return compute(x, alpha)

    register(name, apply)


def _register_alpha_beta(name: str, compute: Callable[[Tensor, float, float], Tensor]) -> None:
    def apply(x: Tensor, alpha: float, beta: float) -> Tensor:
        return compute(x, alpha, beta)

    register(name, apply)


for _name, _plain in PLAIN.items():
    _register_plain(_name, _plain)
for _name, _alpha in WITH_ALPHA.items():
    _register_alpha(_name, _alpha)
for _name, _both in WITH_ALPHA_AND_BETA.items():
    _register_alpha_beta(_name, _both)


@op()
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Gaussian error linear unit, exact or by one of two approximations."""
    if mode not in GELU:
        raise BundleError(f"there is no mode {mode!r} of gelu")
    return GELU[mode](x)


@op()
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Softmax along an axis."""
    return torch.softmax(x, axis)


@op()
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """Leaky rectifier with a slope [C] for each channel of x [n, C, …]."""
    return torch.where(x > 0, x, x * _per_channel(alpha, x))


@op()
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha · log(1 + exp(beta · x)) with alpha and beta [C] for each channel of x [n, C, …]."""
    scaled = x * _per_channel(beta, x)
    return _per_channel(alpha, x) * torch.logaddexp(scaled, torch.zeros_like(scaled))


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 2))
