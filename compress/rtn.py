"""Round to nearest: every weight to the closest integer, without data.

The range of a group is its largest magnitude, as in every runtime's own quantiser.
"""

from __future__ import annotations

from torch import Tensor

from pulse_edge.compress.form import Form, grouped, integers, packed, scales
from pulse_edge.model.quantized import QuantizedWeight


def quantize(weight: Tensor, gram: Tensor | None, form: Form) -> QuantizedWeight:
    """Round a matrix.

    Args:
        weight: float32 [N, K], finite.
        gram: not used; methods share one signature.
        form: of the integers.
    """
    blocks = grouped(weight, form)
    scale, zero = scales(blocks, form)
    return packed(integers(blocks, scale, zero, form), scale, zero, form)
