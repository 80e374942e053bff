"""The methods that round weights, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from pulse_edge.compress import awq, clip, gptq, rtn
from pulse_edge.compress.form import Form
from pulse_edge.errors import UnknownNameError
from pulse_edge.model.quantized import QuantizedWeight


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        quantize: weight [N, K], second moments of its inputs [K, K] or None, form -> integers.
        smooth: changes a decoder layer before it is rounded, or None.
        calibrated: whether it is of any use without data.
    """

    quantize: Callable[[Tensor, Tensor | None, Form], QuantizedWeight]
    smooth: Callable[[nn.Module, dict[str, Tensor], Callable[[str], Form | None]], None] | None = None
    calibrated: bool = True


METHODS: Final = {
    "rtn": Method(rtn.quantize, calibrated=False),
    "clip": Method(clip.quantize),
    "awq": Method(awq.quantize, awq.smooth),
    "gptq": Method(gptq.quantize),
}


def find_method(name: str) -> Method:
    """Return a method by its name.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name]
