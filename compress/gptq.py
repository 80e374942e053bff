"""GPTQ (Frantar et al., ICLR 2023): columns are rounded in turn, and those to come make up for the error.

The inverse of the inputs' second moments says how much each later column can make up; its Cholesky factor
holds what every step needs. Scales of a group are chosen when its first column is reached.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from pulse_edge.compress import clip
from pulse_edge.compress.form import Form, integers, packed, scales, values
from pulse_edge.errors import PulseEdgeError
from pulse_edge.model.quantized import QuantizedWeight

DAMP: Final = 0.01  # of the mean diagonal, added to it (the paper's)
_LAZY: Final = 128  # columns after which the rest of the matrix is brought up to date
_TRIES: Final = 6


def quantize(weight: Tensor, gram: Tensor | None, form: Form) -> QuantizedWeight:
    """Round a matrix so that its product with the calibration inputs changes least.

    Args:
        weight: float32 [N, K], finite.
        gram: float32 [K, K], mean of x xᵀ over the calibration tokens; without it this is
            :mod:`pulse_edge.compress.clip`.
        form: of the integers.
    """
    if gram is None:
        return clip.quantize(weight, None, form)
    rows, columns = weight.shape
    group = form.group or columns
    left = weight.clone()
    whole = torch.empty_like(weight)
    scale, zero = torch.empty(rows, columns // group), torch.empty(rows, columns // group)
    if form.group is None:
        scale[:, 0], zero[:, 0] = scales(weight, form)
    factor = _inverse_factor(gram)
    for start in range(0, columns, _LAZY):
        end = min(start + _LAZY, columns)
        block = left[:, start:end].T.contiguous()  # columns as rows: each step then reads memory in order
        errors = torch.empty_like(block)
        for k in range(start, end):
            j, g = k - start, k // group
            if form.group is not None and k % group == 0:
                ahead = [block[j : j + group].T, left[:, end : k + group]]
                scale[:, g], zero[:, g] = scales(torch.cat(ahead, 1), form)
            one = integers(block[j][:, None], scale[:, g], zero[:, g], form)
            whole[:, k] = one[:, 0]
            errors[j] = (block[j] - values(one, scale[:, g], zero[:, g])[:, 0]) / factor[k, k]
            block[j + 1 :].addr_(factor[k, k + 1 : end], errors[j], alpha=-1)
        left[:, end:].addmm_(errors.T, factor[start:end, end:], alpha=-1)
    return packed(whole.reshape(rows, -1, group), scale, zero, form)


def _inverse_factor(gram: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the damped matrix's inverse, float32 [K, K]."""
    mean = float(gram.diagonal().mean())
    for attempt in range(_TRIES):
        moments = gram.clone()
        diagonal = moments.diagonal()
        diagonal[diagonal == 0] = mean or 1.0  # an input that is always 0: whatever its weight is rounded to
        diagonal += DAMP * mean * 10**attempt
        root, failed = torch.linalg.cholesky_ex(moments)
        if failed:
            continue
        del moments, diagonal  # of a wide layer, each of these is half a gigabyte
        inverse = torch.cholesky_inverse(root)
        del root
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
        if not failed:
            return factor
    raise PulseEdgeError(
        "The calibration inputs of a layer are degenerate, and GPTQ cannot use them. "
        "Calibrate on more records (--calibration-size), or use --method clip."
    )
