"""Weights on their way into a graph: what gives them, their precision, and rounding a whole matrix.

Integers are symmetric, without zero points: the one form that ONNX Runtime fuses and TensorRT accepts
(blocks of 64 or 128 along the input axis for int4). Methods that calibrate come with `compress/` and hand
over their own integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import UnknownNameError, UserError
from pulse_edge.export.rounding import round_rows
from pulse_edge.model.quantized import QuantizedWeight
from pulse_edge.model.shards import Form

BITS: Final = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "palette4": 4}
INT4_BLOCKS: Final = (128, 64)  # TensorRT takes no others; the larger is the smaller file
PROFILES: Final = ("trt", "trt10.15", "ort")
# The lowest that will do, since TensorRT's parsers lag behind: half-precision scales of
# DequantizeLinear came with opset 19, its blocks with 21.
_OPSETS: Final = {32: 18, 16: 18, 8: 19, 4: 21}
_FUSED_OPSET: Final = 23  # Attention, RMSNormalization and RotaryEmbedding


class Weights(Protocol):
    """Weights by canonical name, read by the row; ``model.shards.Shards`` is one."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""

    def kind(self, name: str) -> str:
        """``BF16``, ``F16`` or ``F32``; bfloat16 comes from :meth:`rows` as its 16 bits in uint16."""

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Entries ``start`` to ``stop`` along the first axis."""

    def form(self, name: str) -> Form | None:
        """How a weight stands as integers, or None where it does not."""

    def integers(self, name: str, start: int, stop: int) -> QuantizedWeight:
        """Rows ``start`` to ``stop`` of a weight that stands as integers."""


@dataclass(frozen=True)
class Precision:
    """How a decoder is stored and computed.

    Attributes:
        name: fp32, fp16, int8, int4 or, for Core ML only, palette4: 16 values for every 16 rows.
        bits: of the linear layers' weights.
        compute: type of activations and of the key-value cache.
        given: the checkpoint holds integers, which are taken as they are; its other weights stay floats.
        profile: ``trt`` writes attention, norms and rotary embedding in primitive operators;
            ``trt10.15`` uses those of opset 23, ``ort`` ONNX Runtime's own.
    """

    name: str
    bits: int
    compute: type[np.floating]
    profile: str = "trt"
    given: bool = False

    @property
    def table(self) -> type[np.floating]:
        """Type of what is not rounded to integers: embeddings, head, and layers that int4 does not fit."""
        return np.float32 if self.bits == 32 else np.float16

    @property
    def fused(self) -> bool:
        """Whether the decoder uses the operators of opset 23."""
        return self.profile == "trt10.15"

    @property
    def opset(self) -> int:
        """Of the decoder's graph."""
        if self.profile == "ort":
            return _OPSETS[4]
        return _FUSED_OPSET if self.fused else _OPSETS[4 if self.given else self.bits]


def precision(name: str, target: str, profile: str = "trt") -> Precision:
    """Return a precision for a target: Jetson and Core ML compute in fp16, ONNX Runtime on a CPU in fp32.

    Raises:
        UnknownNameError: no such precision or profile.
        UserError: the target cannot use it.
    """
    if name not in BITS:
        raise UnknownNameError("precision", name, BITS)
    if profile not in PROFILES:
        raise UnknownNameError("profile", profile, PROFILES)
    if target == "jetson" and name == "fp32":
        raise UserError("fp32 wastes a Jetson's memory and tensor cores. Use --precision fp16, int8 or int4.")
    if target == "jetson" and profile == "ort":
        raise UserError(
            "The profile ort is for ONNX Runtime. Use --profile trt or trt10.15, or --target onnx."
        )
    if name == "palette4" and target != "coreml":
        raise UserError("palette4 is a format of Core ML. Use --precision int4, or --target coreml.")
    half = name == "fp16" or target == "jetson" or (target == "coreml" and name != "fp32")
    half = half and profile != "ort"  # a CPU computes in float32 whatever the weights are
    return Precision(name, BITS[name], np.float16 if half else np.float32, profile)


def take_integers(how: Precision, bits: int, asked: str | None, target: str) -> Precision:
    """Return the precision for a checkpoint that holds integers: they are taken as they are.

    Args:
        how: what it would be without.
        bits: fewest bits of the checkpoint's integers.
        asked: what the user asked for; fp16 and fp32 store what the integers stand for.
        target: as for :func:`precision`.

    Raises:
        UserError: other integers are asked for.
    """
    held = f"int{bits}"
    if asked is None or asked == held:
        return replace(precision(held, target, how.profile), given=True)
    if how.bits >= 16:
        return how
    raise UserError(
        f"The checkpoint holds {held} weights, and rounding them again to {asked} would only lose. "
        f"Use --precision {held} or fp16."
    )


def int4_block(shape: tuple[int, ...]) -> int | None:
    """Return the block size for a matrix [K, N], or None where TensorRT's rules allow no int4."""
    return next((b for b in INT4_BLOCKS if shape[0] % b == 0 and shape[1] % 2 == 0), None)


def quantize(
    matrix: NDArray[np.float32], block: int, levels: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a whole matrix [K, N] in memory, by the same rule as what is streamed.

    Args:
        matrix: float32; ``block`` divides K.
        block: rows of a column that share a scale; K for one scale per column.
        levels: 127 for int8, 7 for int4.

    Returns:
        Integers int8 [K, N], and scales float32 [K / block, N] whose values float16 holds exactly.
    """
    low, scale = round_rows(np.array(matrix.T, np.float32, order="C"), block, levels)
    return np.ascontiguousarray(low.view(np.int8).T), np.ascontiguousarray(scale.T)
