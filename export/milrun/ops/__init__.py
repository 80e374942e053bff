"""The ops of MIL, a module per family; importing this package fills the registry."""

from __future__ import annotations

from pulse_edge.export.milrun.ops import (
    activation,
    constexpr,
    convolution,
    elementwise,
    gather,
    image,
    linear,
    normalization,
    quantization,
    rearrange,
    reduction,
    shape,
    slicing,
)

__all__ = [
    "activation",
    "constexpr",
    "convolution",
    "elementwise",
    "gather",
    "image",
    "linear",
    "normalization",
    "quantization",
    "rearrange",
    "reduction",
    "shape",
    "slicing",
]
