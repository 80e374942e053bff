"""Smooth fields over a mesh, as `runtimes/capture/field.py` makes them: transforms and plane fits as products."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from pulse_edge.export.capture_graph.mesh import NODES, along, within
from pulse_edge.export.capture_graph.plain import array, choose, count, median, solve, true
from pulse_edge.runtimes.capture.field import _DECAY as DECAY

_TURNS: Final = (12, 6, 6, 6)  # steps between reweightings


def smooth_field(values: Tensor, weight: Tensor, stiffness: float, span: Tensor) -> tuple[Tensor, Tensor]:
    """Fit smooth fields to values of which some are wrong, both families at once.

    Args:
        values: float32 [2, N, N].
        weight: float32 [2, N, N].
        stiffness: factor on the squared Laplacian.
        span: of the mesh.

    Returns:
        The fields and the residual of each value, float32 [2, N, N] each; 0 beyond the span.
    """
    real = within(span)
    values, weight = values * real, weight * real
    mask = real.reshape(1, -1).expand(2, -1)
    rows, columns = (_cosines(span, axis) for axis in range(2))
    bend = []
    for axis in range(2):
        n = span[axis, 1] - span[axis, 0]
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


def _cosines(span: Tensor, axis: int) -> Tensor:
    """Orthonormal cosine transform of a span, [N, N]: frequency, node; 0 beyond."""
    first, n = span[axis, 0], span[axis, 1] - span[axis, 0]
    k, node = count(NODES)[:, None], count(NODES)[None]
    wave = torch.cos(np.pi / n * k * (node - first + 0.5))
    size = torch.sqrt((2 - true(k < 0.5)) / n)
    return wave * size * true(k < n - 0.5) * along(span, axis)[None]


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
    right = torch.stack([torch.stack([moment(rest[k], a, b) / scale for k in range(2)], -1) for a, b in order], -2)
    matrix = matrix + torch.diag(array([1e-9, 1e-6, 1e-6]))
    return flat + solve(matrix, right)[..., 0, :].permute(2, 0, 1)


def _homography(mesh: Tensor, held: Tensor) -> Tensor:
    """The homography of node indices that fits held nodes best, at all nodes: [2, N, N].

    Linear least squares, then twice with the weights that make its errors those in pixels.
    """
    total = torch.clamp(held.sum(), min=1)
    middle = (mesh * held).sum((1, 2), keepdim=True) / total
    size = torch.clamp(torch.sqrt((((mesh - middle) ** 2) * held).sum() / total), min=1.0)
    target = ((mesh - middle) / size).reshape(2, -1)
    r = count(NODES)[:, None].expand(NODES, NODES)
    c = count(NODES)[None].expand(NODES, NODES)
    places = []
    for part in (c, r):
        mean = (part * held).sum() / total
        spread = torch.clamp(torch.sqrt((((part - mean) ** 2) * held).sum() / total), min=0.5)
        places.append(((part - mean) / spread).reshape(-1))
    u, v = places
    one, none = torch.ones_like(u), torch.zeros_like(u)
    rows = []
    for k, before, after in ((0, [], [none, none, none]), (1, [none, none, none], [])):
        to = target[k]
        rows.append(torch.stack([*before, u, v, one, *after, -u * to, -v * to], 1))
    weight, found = held.reshape(-1), torch.zeros(8, 1)
    down = one
    for _ in range(3):
        normal, right = torch.zeros(8, 8), torch.zeros(8, 1)
        for k in range(2):
            scaled = rows[k] * (weight / (down * down))[:, None]
            normal = normal + scaled.T @ rows[k]
            right = right + scaled.T @ target[k][:, None]
        found = solve(normal / total + torch.eye(8) * 1e-9, right / total)
        h = found[:, 0]
        down = torch.clamp(h[6] * u + h[7] * v + 1, min=0.1)
    h = found[:, 0]
    flat = torch.stack([h[0] * u + h[1] * v + h[2], h[3] * u + h[4] * v + h[5]]) / down
    return flat.reshape(2, NODES, NODES) * size + middle
