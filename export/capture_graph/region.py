"""The largest part of a mesh that hangs together, without labels: flooded along runs of rows and columns."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from pulse_edge.export.capture_graph.mesh import NODES, Span
from pulse_edge.export.capture_graph.plain import count, length, true
from pulse_edge.export.capture_graph.reference import IRREGULAR

_TURNS: Final = 5  # of flooding, each along rows and columns
_CORE: Final = 31  # nodes across the neighbourhood whose fullest is the start: more than a stray part fills


def linked(mesh: Tensor, good: Tensor, span: Span) -> Tensor:
    """Keep the good nodes, float32 [N, N], that hang together by regular steps; see the reference."""
    return largest(good, *(_irregular(mesh, axis, span) for axis in (2, 1)))


def _irregular(mesh: Tensor, axis: int, span: Span) -> Tensor:
    """1 where the step to a node from the one before differs from those around it: float32 [N, N]."""
    before = functional.pad(mesh, (1, 0, 0, 0) if axis == 2 else (0, 0, 1, 0))[:, :NODES, :NODES]
    steps = span.repeated(mesh - before)
    rim = functional.pad(steps, (2, 2, 2, 2))
    near = torch.stack([rim[:, r : r + NODES, c : c + NODES] for r in range(5) for c in range(5)])
    usual = torch.topk(near, 13, dim=0).values[12]
    off = torch.sqrt(((steps - usual) ** 2).sum(0))
    return 1 - true(off < IRREGULAR * torch.sqrt((usual**2).sum(0)))


def largest(mask: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Keep what hangs together (by sides) with the fullest neighbourhood of a mask, float32 [N, N].

    The reference labels all parts and keeps the one with the most nodes. Both are the same as long as the
    largest part is also the densest and no way within it turns more than ten times.

    Args:
        mask: of nodes.
        across: 1 where a node does not hang together with the one to its left.
        down: likewise with the one above.
    """
    n = length(mask)
    full = (
        functional.avg_pool2d(mask[None, None], _CORE, 1, _CORE // 2)[0, 0] + mask
    )  # its middle is in the mask
    start = full.reshape(-1).argmax().to(torch.float32)
    flooded = true(torch.abs(count(n * n) - start) < 0.5).reshape(n, n) * mask
    rows, columns = _runs(mask, across), _runs(mask.T, down.T)
    for _ in range(_TURNS):
        flooded = true((rows @ flooded[..., None])[..., 0] > 0.5)
        flooded = true((columns @ flooded.T[..., None])[..., 0] > 0.5).T
    return flooded


def _runs(mask: Tensor, apart: Tensor) -> Tensor:
    """1 for two nodes of a row with no gap between them: [N, N, N]."""
    n = length(mask)
    before = true(count(n)[:, None] < count(n)[None] + 0.5)  # sums up to and with each node
    gaps = (1 - mask + apart) @ before
    same = true(torch.abs(gaps[:, :, None] - gaps[:, None, :]) < 0.5)
    return same * mask[:, :, None] * mask[:, None, :]
