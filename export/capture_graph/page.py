"""The picture unrolled to a flat page of fixed scale, and its light evened out.

The page lies in the upper left of a fixed square. Sampling is bilinear, since Core ML has no cubic one; the
page has more pixels than the tiles that are made of it, which hides most of the difference.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from pulse_edge.export.capture_graph.mesh import NODES, Span, catmull_rom, look
from pulse_edge.export.capture_graph.plain import area, array, count, folded, gaussian, length, linear, true
from pulse_edge.export.capture_graph.reference import CELL_MM, SMOOTH_MM, WHITE

CELLS: Final = 64  # of 5 mm: a page of up to 320 mm a side
PX_PER_CELL: Final = 30
ROOM: Final = CELLS * PX_PER_CELL
_PER_CELL: Final = 4  # parts of a cell of 4 mm, in which the paper's light is looked for
_FINE: Final = 5  # page pixels across such a part, at least
_REACH: Final = 2  # of those to each side


def page_size(span: Span) -> Tensor:
    """Height and width of the page that a span makes, in pixels, float32 [2]."""
    return torch.clamp(span.end - span.first - 1, 1, CELLS) * PX_PER_CELL


def unroll(image: Tensor, size: Tensor, mesh: Tensor, span: Span) -> Tensor:
    """Resample a picture, float32 [1, 3, S, S] of ``size``, to its page: float32 [3, ROOM, ROOM]."""
    side = count(length(image))
    inside = true(side < size[0] - 0.5)[:, None] * true(side < size[1] - 0.5)
    unit = mesh * (2 / (length(image) - 1)) - 1
    at = (count(ROOM) + 0.5) / PX_PER_CELL
    down, across = (catmull_rom(at[:, None] + span.first[axis] - count(NODES)[None]) for axis in range(2))
    x, y = (down @ unit[k] @ across.T for k in range(2))
    # What lies outside of the picture is white.
    return torch.round(255 - look((255 - image) * inside, x, y)[0])


def even_light(page: Tensor, size: Tensor) -> Tensor:
    """Divide a page, float32 [3, ROOM, ROOM], by the light that its paper sends back."""
    most = ROOM // _FINE
    cells = torch.clamp(torch.round(size / (CELL_MM / 5 * PX_PER_CELL)), min=1) * _PER_CELL
    down, across = (area(size[axis], cells[axis], most, ROOM) for axis in range(2))
    fine = torch.round(down @ page @ across.T)
    bright = functional.max_pool2d(fine[None], 2 * _REACH + 1, 1, _REACH)[0]
    sigma = array(_PER_CELL * SMOOTH_MM / CELL_MM / 2)
    rows, columns = (linear(size[axis], cells[axis], most, ROOM) for axis in range(2))
    blur = [folded(gaussian(sigma, 4 * sigma), cells[axis], most) for axis in range(2)]
    coarse = torch.floor(torch.clamp(blur[0] @ bright @ blur[1].T, 8, 255))
    light = torch.clamp(torch.round(rows @ coarse @ columns.T), min=1)
    return torch.clamp(torch.round(page * WHITE / light), max=255)
