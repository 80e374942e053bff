"""Smooth fields over a mesh, as `runtimes/capture/field.py` makes them, in matrix products."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from pulse_edge.export.capture_graph.mesh import NODES, Span
from pulse_edge.export.capture_graph.plain import array, choose, count, median, solve, true
from pulse_edge.export.capture_graph.reference import DECAY

_TURNS: Final = (12, 6, 6, 6)  # steps between reweightings


def smooth_field(values: Tensor, weight: Tensor, stiffness: float, span: Span) -> tuple[Tensor, Tensor]:
    """Fit smooth fields to values of which some are wrong, both families at once.

    Args:
        values: float32 [2, N, N].
        weight: float32 [2, N, N].
        stiffness: factor on the squared Laplacian.
        span: of the mesh.

    Returns:
        The fields and the residual of each value, float32 [2, N, N] each; 0 beyond the span.
    """
    real = span.real
    values, weight = values * real, weight * real
    mask = torch.cat([real.reshape(1, -1)] * 2)
    rows, columns = (_cosines(span, axis) for axis in range(2))
    bend = []
    for axis in range(2):
        n = span.end[axis] - span.first[axis]
        bend.append(2 - 2 * torch.cos(np.pi * count(NODES) / n))
    filtering = 1 / (1 + stiffness * (bend[0][:, None] + bend[1][None]) ** 2)
    base = (weight / torch.clamp(weight.amax((1, 2), keepdim=True), min=1e-9)) ** 2
    flat, heavy = values.reshape(2, -1), weight.reshape(2, -1)
    usual = median(flat, true(heavy >= median(heavy, mask)) * mask)
    field = usual[..., None] * real
    kept, known = base, true(base > 0.1).reshape(2, -1)
    off = values
    for steps in _TURNS:
        for _ in range(steps):
            mixed = kept * (values - field) + field
            field = rows.T @ (filtering * (rows @ mixed @ columns.T)) @ columns
        off = (values - field) * real
        typical = 1.4826 * median(torch.abs(off).reshape(2, -1), known)
        any_known = true(known.sum(1, keepdim=True) > 0.5)
        typical = choose(any_known, typical, typical * 0 + 0.1)
        limit = 4.685 * torch.clamp(typical, min=0.02)[..., None]
        kept = base * torch.clamp(1 - (off / limit) ** 2, min=0) ** 2
    return field, off


def _cosines(span: Span, axis: int) -> Tensor:
    """Orthonormal cosine transform of a span, [N, N]: frequency, node; 0 beyond."""
    first, n = span.first[axis], span.end[axis] - span.first[axis]
    k, node = count(NODES)[:, None], count(NODES)[None]
    wave = torch.cos(np.pi / n * k * (node - first + 0.5))
    size = torch.sqrt((2 - true(k < 0.5)) / n)
    return wave * size * true(k < n - 0.5) * span.along[axis][None]


def continue_mesh(mesh: Tensor, held: Tensor) -> Tensor:
    """Continue a mesh, float32 [2, N, N], beyond the nodes that a mask [N, N] holds.

    What the best homography leaves is continued as planes through the nearest held nodes.
    """
    flat = _homography(mesh, held)
    rest = (mesh - flat) * held
    apart = count(NODES)[None] - count(NODES)[:, None]
    near = torch.exp(-torch.abs(apart) / DECAY)
    kernel = [near, near * apart, near * apart * apart]  # moments around each node

    def moment(values: Tensor, down: int, across: int) -> Tensor:
        return kernel[down] @ values @ kernel[across].T

    order = ((0, 0), (1, 0), (0, 1))
    normal = {(a, b): moment(held, a, b) for a in range(3) for b in range(3) if a + b < 3}
    scale = torch.clamp(normal[0, 0], min=1e-30)
    matrix = torch.stack(
        [torch.stack([normal[a + c, b + d] / scale for c, d in order], -1) for a, b in order], -2
    )
    right = torch.stack(
        [torch.stack([moment(rest[k], a, b) / scale for k in range(2)], -1) for a, b in order], -2
    )
    matrix = matrix + array(np.diag([1e-9, 1e-6, 1e-6]))
    return flat + solve(matrix, right)[..., 0, :].permute(2, 0, 1)


def _homography(mesh: Tensor, held: Tensor) -> Tensor:
    """The homography of node indices that fits held nodes best, at all nodes: [2, N, N].

    Linear least squares, then once more with the weights that make its errors those in pixels. With the same
    weights for x and y, six of the eight unknowns are eliminated by one 3 x 3 matrix.
    """
    total = torch.clamp(held.sum(), min=1)
    middle = (mesh * held).sum((1, 2), keepdim=True) / total
    size = torch.clamp(torch.sqrt((((mesh - middle) ** 2) * held).sum() / total), min=1.0)
    target = ((mesh - middle) / size).reshape(2, -1)
    along = count(NODES)
    places = []
    for part in (along[None] + 0 * along[:, None], along[:, None] + 0 * along[None]):
        mean = (part * held).sum() / total
        spread = torch.clamp(torch.sqrt((((part - mean) ** 2) * held).sum() / total), min=0.5)
        places.append(((part - mean) / spread).reshape(-1))
    place = torch.stack(places)  # [2, n]
    full = torch.cat([place, torch.ones_like(place[:1])])  # [3, n]
    weight, down = held.reshape(-1) / total, torch.ones_like(place[0])
    flat = target
    for _ in range(2):
        scaled = weight / (down * down)
        # Unknowns: three of x, three of y, and two that both share, met with -place * target.
        moment = (full * scaled) @ full.T + torch.eye(3) * 1e-9
        both = place[None] * target[:, None]  # [2, 2, n]
        right = torch.cat([-both[0], -both[1], target]) * scaled  # [6, n]
        side = full @ right.T  # [3, 6]
        solved = solve(moment, side)
        shared, wanted = torch.eye(2) * 1e-9, torch.zeros(2, 1)
        for k in range(2):
            part, aim = side[:, 2 * k : 2 * k + 2], solved[:, 4 + k : 5 + k]
            shared = shared + (both[k] * scaled) @ both[k].T - part.T @ solved[:, 2 * k : 2 * k + 2]
            wanted = wanted - (both[k] * scaled) @ target[k][:, None] - part.T @ aim
        tilt = _two(shared, wanted)
        down = torch.clamp((tilt * place).sum(0) + 1, min=0.1)
        lines = [solved[:, 4 + k : 5 + k] - solved[:, 2 * k : 2 * k + 2] @ tilt for k in range(2)]
        flat = torch.cat(lines, 1).T @ full / down
    return flat.reshape(2, NODES, NODES) * size + middle


def _two(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve a symmetric 2 x 2 system by Cramer's rule: [2, 1]."""
    a, b, c = matrix[0:1, 0:1], matrix[0:1, 1:2], matrix[1:2, 1:2]
    first, second = right[0:1], right[1:2]
    return torch.cat([c * first - b * second, a * second - b * first]) / (a * c - b * b)
