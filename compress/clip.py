"""Round to nearest with the range of every group searched: a little clipping buys finer steps.

The error of a channel counts by its mean square in the calibration data (importance as in llama.cpp's
matrices and AWQ's clip search, Lin et al., MLSys 2024), or by 1 without data.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from pulse_edge.compress.form import Form, grouped, integers, packed, scales, values
from pulse_edge.model.quantized import QuantizedWeight

SHRINKS: Final = tuple(1.0 - 0.02 * step for step in range(21))  # 1.00 to 0.60 of the extremes


def quantize(weight: Tensor, gram: Tensor | None, form: Form) -> QuantizedWeight:
    """Round a matrix with the ranges that leave the least weighted square error.

    Args:
        weight: float32 [N, K], finite.
        gram: float32 [K, K], mean of x xᵀ over the calibration tokens; its diagonal weighs the channels.
        form: of the integers.
    """
    blocks = grouped(weight, form)
    heed = torch.ones(blocks.shape[1:]) if gram is None else gram.diagonal().reshape(blocks.shape[1:])
    shrink = torch.ones(blocks.shape[:2])
    least = torch.full(blocks.shape[:2], torch.inf)
    for share in SHRINKS:
        scale, zero = scales(blocks, form, share)
        error = values(integers(blocks, scale, zero, form), scale, zero).sub_(blocks).square_().mul_(heed)
        total = error.sum(-1)
        shrink[total < least] = share
        least = torch.minimum(least, total)
    scale, zero = scales(blocks, form, shrink)
    return packed(integers(blocks, scale, zero, form), scale, zero, form)
