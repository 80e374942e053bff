"""Products of 8-bit integers in ONNX Runtime: a scale for each column of weights, and for each token."""

from __future__ import annotations

from typing import Final

import numpy as np

from pulse_edge.export.linear import integers
from pulse_edge.export.onnx_writer import GraphWriter, Shape
from pulse_edge.export.weights import Precision, Weights
from pulse_edge.model.shards import Form

_MIDDLE: Final = 128  # the unsigned 8-bit integer that stands for 0
_LEAST: Final = 1e-30  # of a scale, so that nothing is divided by 0


class Rounded:
    """Adds such products to a graph; activations that several products take are rounded once.

    Unsigned activations by signed weights are what processors with 8-bit dot products are fast at: of
    signed ones, ONNX Runtime 1.32 makes a product eighteen times as slow.

    Args:
        writer: of the graph.
        weights: of the checkpoint.
        how: precision of the integers.
    """

    def __init__(self, writer: GraphWriter, weights: Weights, how: Precision) -> None:
        self._w, self._weights, self._how = writer, weights, how
        self._done: dict[str, tuple[str, str]] = {}

    def product(self, x: str, name: str, key: str, form: Form, lead: Shape) -> str:
        """Add ``x @ weight.T``; return its name.

        Args:
            x: float32 [..., K].
            name: of the layer; the output has it too.
            key: canonical name of the weight [N, K].
            form: of its integers.
            lead: shape of ``x`` but for K.
        """
        w = self._w
        stored, scale = integers(w, name, self._weights, key, self._how, form)
        low, unit = self._activations(x)
        one, middle = w.constant(1.0, np.float32), w.constant(_MIDDLE, np.uint8)
        y = w.contrib(
            "MatMulIntegerToFloat", low, stored, one, scale, middle, names=[f"{name}/product"],
            dtype=np.float32, shapes=[[*lead, form.shape[0]]],
        )  # fmt: skip
        return w.op("Mul", y, unit, name=name)

    def _activations(self, x: str) -> tuple[str, str]:
        """Round [..., K] to 8 bits; return their name and that of their scales [..., 1]."""
        if x not in self._done:
            w, name = self._w, f"{x}/int8"
            last, least = w.constant([-1], np.int64), w.constant(_LEAST, np.float32)
            largest = w.op(
                "ReduceMax", w.op("Abs", x, name=f"{name}/abs"), last, name=f"{name}/largest", keepdims=1
            )
            unit = w.op("Mul", largest, w.constant(1 / 127, np.float32), name=f"{name}/unit")
            unit = w.op("Max", unit, least, name=f"{name}/scale")
            one, middle = w.constant(1.0, np.float32), w.constant(_MIDDLE, np.uint8)
            even = w.op("Div", x, unit, name=f"{name}/even")
            self._done[x] = w.op("QuantizeLinear", even, one, middle, name=name), unit
        return self._done[x]
