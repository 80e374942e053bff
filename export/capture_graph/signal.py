"""The contrast of thin lines, as `runtimes/capture/contrast.py` has it, in matrix products."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from pulse_edge.export.capture_graph.plain import area, array, folded, gaussian, length, linear, true
from pulse_edge.export.capture_graph.reference import CLIP, FLOOR, REACH

_SMALL: Final = 400  # cells along the long side of the copy on which surroundings are taken
_GREY: Final = (0.299, 0.587, 0.114)


def line_signal(image: Tensor, size: Tensor) -> Tensor:
    """How much darker than its surroundings each pixel is.

    Args:
        image: float32 [1, 3, S, S], RGB, 0 to 255, the picture in the upper left corner.
        size: float32 [2], its height and width.

    Returns:
        float32 [S, S], 0 outside of the picture.
    """
    room = length(image)
    grey = torch.round((image[0] * array(_GREY)[:, None, None]).sum(0))
    longest = torch.maximum(size[0], size[1])
    reach = torch.clamp(longest * REACH, min=1.5)
    step = torch.clamp(torch.ceil(longest / _SMALL), min=1.0)
    radius = torch.round(reach / step * 4)
    down, up = [], []
    for axis in range(2):
        cells = torch.clamp(torch.round(size[axis] / step), min=1.0)
        blur = folded(gaussian(reach / step, radius), cells, _SMALL)
        down.append(blur @ area(size[axis], cells, _SMALL, room))
        up.append(linear(size[axis], cells, _SMALL, room))

    def around(values: Tensor) -> Tensor:
        return up[0] @ (down[0] @ values @ down[1].T) @ up[1].T

    dark = around(grey) - grey
    bound = dark
    for _ in range(2):
        spread = torch.sqrt(torch.clamp(around(bound * bound), min=0)) + FLOOR
        bound = torch.minimum(torch.maximum(dark, -spread), spread)
    at = torch.arange(room, dtype=torch.float32)
    inside = true(at < size[0] - 0.5)[:, None] * true(at < size[1] - 0.5)
    return torch.clamp(dark / spread, -CLIP, CLIP) * inside
