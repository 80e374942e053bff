"""A mesh in a fixed square of nodes, of which a span is real; sampling through it.

A mesh is float32 [2, N, N]: x and y of each node, rows before columns. Beyond its span it goes on straight, as
`runtimes/capture/mesh.py` continues one. A span is float32 [2, 2]: by axis (rows, columns) the first node and
the one behind the last.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pulse_edge.export.capture_graph.plain import array, between, count, true

NODES: Final = 84  # 415 mm; more than 87 and the medians over all nodes exceed TensorRT's TopK


def along(span: Tensor, axis: int, nodes: int = NODES) -> Tensor:
    """Mask [nodes] of a span along one axis."""
    return between(count(nodes), span[axis, 0], span[axis, 1])


def within(span: Tensor) -> Tensor:
    """Mask [N, N] of the nodes of a span."""
    return along(span, 0)[:, None] * along(span, 1)[None]


def continued(mesh: Tensor, span: Tensor) -> Tensor:
    """Replace what is beyond the span by straight continuation of its outer two nodes."""
    rows, columns = (_straight(span[axis]) for axis in range(2))
    return rows @ mesh @ columns.T


def _straight(span: Tensor) -> Tensor:
    """Matrix [N, N] that keeps a span and continues it in line with its outer two nodes."""
    to, source = count(NODES)[:, None], count(NODES)[None]
    place = torch.minimum(torch.maximum(to, span[0]), span[1] - 1)
    beyond = to - place  # below 0 before the span, above 0 behind it
    own = true(torch.abs(source - place) < 0.5)
    toward = true(torch.abs(source - place + torch.sign(beyond)) < 0.5)
    return own + torch.abs(beyond) * (own - toward)


def repeated(values: Tensor, span: Tensor) -> Tensor:
    """Replace what is beyond the span, [..., N, N], by the nearest node of it."""
    matrices = []
    for axis in range(2):
        place = torch.minimum(torch.maximum(count(NODES)[:, None], span[axis, 0]), span[axis, 1] - 1)
        matrices.append(true(torch.abs(count(NODES)[None] - place) < 0.5))
    return matrices[0] @ values @ matrices[1].T


def catmull_rom(away: Tensor) -> Tensor:
    """Weight of a node at a distance, in nodes."""
    near = torch.abs(away)
    inner = (1.5 * near - 2.5) * near * near + 1
    outer = ((-0.5 * near + 2.5) * near - 4) * near + 2
    return inner * true(near < 1) + outer * true(near >= 1) * true(near < 2)


def moved(mesh: Tensor, shift_mm: Tensor, span: Tensor) -> Tensor:
    """Move nodes to what stands ``shift_mm``, float32 [2, N, N] within 2.5 mm, further on in the mesh."""
    step = count(5)[:, None, None] - 2
    across, down = catmull_rom(shift_mm[:1] / 5 - step), catmull_rom(shift_mm[1:] / 5 - step)
    weight = (down[:, None] * across[None]).reshape(25, NODES, NODES)
    cut = torch.eye(25).reshape(25, 1, 5, 5)
    near = functional.conv2d(mesh[:, None], cut, padding=2)
    return continued((near * weight).sum(1), span)


def spread(px_per_node: int, nodes: int = NODES) -> Tensor:
    """Matrix [(nodes - 1) * px_per_node, nodes] from nodes to the pixels between them."""
    at = (np.arange((nodes - 1) * px_per_node) + 0.5) / px_per_node
    return catmull_rom(array(at)[:, None] - count(nodes)[None])


def look(picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear values of a picture [1, c, S, S] at pixels x and y, [h, w] each: [1, c, h, w]; 0 outside."""
    room = picture.shape[-1] - 1
    grid = torch.stack([x, y], -1)[None] * (2 / room) - 1
    return functional.grid_sample(picture, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
