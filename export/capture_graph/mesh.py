"""A mesh in a fixed square of nodes, of which a span is real; sampling through it.

A mesh is float32 [2, N, N]: x and y of each node, rows before columns. Beyond its span it goes on straight,
as `runtimes/capture/mesh.py` continues one.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pulse_edge.export.capture_graph.plain import array, between, count, true

NODES: Final = 84  # 415 mm; more than 87 and the medians over all nodes exceed TensorRT's TopK


class Span:
    """Which nodes of the square are real: by axis (rows, columns) from ``first`` to below ``end``, [2]."""

    def __init__(self, first: Tensor, end: Tensor) -> None:
        self.first, self.end = first, end

    @cached_property
    def along(self) -> list[Tensor]:
        """Mask [N] of rows and of columns."""
        return [between(count(NODES), self.first[axis], self.end[axis]) for axis in range(2)]

    @cached_property
    def real(self) -> Tensor:
        """Mask [N, N]."""
        return self.along[0][:, None] * self.along[1][None]

    @cached_property
    def _nearest(self) -> list[Tensor]:
        """Matrices [N, N] that repeat the outer nodes."""
        return [true(torch.abs(count(NODES)[None] - place) < 0.5) for place in self._places]

    @cached_property
    def _places(self) -> list[Tensor]:
        """The real node nearest to each, [N, 1]."""
        to = count(NODES)[:, None]
        return [torch.minimum(torch.maximum(to, self.first[axis]), self.end[axis] - 1) for axis in range(2)]

    @cached_property
    def _straight(self) -> list[Tensor]:
        """Matrices [N, N] that go on in line with the outer two nodes."""
        out = []
        for place, own in zip(self._places, self._nearest, strict=True):
            beyond = count(NODES)[:, None] - place  # below 0 before the span, above 0 behind it
            toward = true(torch.abs(count(NODES)[None] - place + torch.sign(beyond)) < 0.5)
            out.append(own + torch.abs(beyond) * (own - toward))
        return out

    def continued(self, mesh: Tensor) -> Tensor:
        """Replace what is beyond the span by straight continuation."""
        return self._straight[0] @ mesh @ self._straight[1].T

    def repeated(self, values: Tensor) -> Tensor:
        """Replace what is beyond the span, [..., N, N], by the nearest node of it."""
        return self._nearest[0] @ values @ self._nearest[1].T

    def tensor(self) -> Tensor:
        """float32 [2, 2]: by axis, first and end."""
        return torch.stack([self.first, self.end], 1)


def catmull_rom(away: Tensor) -> Tensor:
    """Weight of a node at a distance, in nodes."""
    near = torch.abs(away)
    inner = (1.5 * near - 2.5) * near * near + 1
    outer = ((-0.5 * near + 2.5) * near - 4) * near + 2
    return inner * true(near < 1) + outer * true(near >= 1) * true(near < 2)


def moved(mesh: Tensor, shift_mm: Tensor, span: Span) -> Tensor:
    """Move nodes to what stands ``shift_mm``, float32 [2, N, N] within 2.5 mm, further on in the mesh."""
    step = count(5)[:, None, None] - 2
    across, down = catmull_rom(shift_mm[:1] / 5 - step), catmull_rom(shift_mm[1:] / 5 - step)
    weight = (down[:, None] * across[None]).reshape(25, NODES, NODES)
    cut = torch.eye(25).reshape(25, 1, 5, 5)
    near = functional.conv2d(mesh[:, None], cut, padding=2)
    return span.continued((near * weight).sum(1))


def spread(px_per_node: int, nodes: int = NODES) -> Tensor:
    """Matrix [(nodes - 1) * px_per_node, nodes] from nodes to the pixels between them."""
    at = (np.arange((nodes - 1) * px_per_node) + 0.5) / px_per_node
    return catmull_rom(array(at)[:, None] - count(nodes)[None])


def look(picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear values of a picture [1, c, S, S], 0 outside of it: [1, c, h, w].

    Args:
        picture: the picture.
        x: [h, w], -1 at the centre of its first column of pixels, 1 at that of its last.
        y: [h, w], likewise of rows.
    """
    grid = torch.stack([x, y], -1)[None]
    return functional.grid_sample(picture, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
