"""The largest connected part of a mask, without labels: flooded along whole runs of rows and columns."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from pulse_edge.export.capture_graph.plain import count, length, true

_TURNS: Final = 5  # of flooding, each along rows and columns
_CORE: Final = 31  # nodes across the neighbourhood whose fullest is the start: more than a stray part fills


def largest(mask: Tensor) -> Tensor:
    """Keep what hangs together (by sides) with the fullest neighbourhood of a mask, float32 [N, N].

    The reference labels all parts and keeps the one with the most nodes. Both are the same as long as the
    largest part is also the densest and no way within it turns more than ten times.
    """
    n = length(mask)
    full = (
        functional.avg_pool2d(mask[None, None], _CORE, 1, _CORE // 2)[0, 0] + mask
    )  # its middle is in the mask
    start = full.reshape(-1).argmax().to(torch.float32)
    flooded = true(torch.abs(count(n * n) - start) < 0.5).reshape(n, n) * mask
    rows, columns = _runs(mask), _runs(mask.T)
    for _ in range(_TURNS):
        flooded = true((rows @ flooded[..., None])[..., 0] > 0.5)
        flooded = true((columns @ flooded.T[..., None])[..., 0] > 0.5).T
    return flooded


def _runs(mask: Tensor) -> Tensor:
    """1 for two nodes of a row with no gap between them: [N, N, N]."""
    n = length(mask)
    before = true(count(n)[:, None] < count(n)[None] + 0.5)  # sums up to and with each node
    gaps = (1 - mask) @ before
    same = true(torch.abs(gaps[:, :, None] - gaps[:, None, :]) < 0.5)
    return same * mask[:, :, None] * mask[:, None, :]
