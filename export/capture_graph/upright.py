"""Which way up the page is: the network of `runtimes/capture/orientation.py` on all four turns at once."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pulse_edge.export.capture_graph.page import ROOM
from pulse_edge.export.capture_graph.plain import FAR, array, between, count, folded, length, quantile, true
from pulse_edge.export.capture_graph.reference import FAINTEST, INK, STRIDES, WEIGHTS

_SHRINK: Final = 3  # page pixels across one of the thumbnail
_SIDE: Final = ROOM // _SHRINK
_BOX: Final = 20  # pixels to each side whose mean is the paper


def turns(page: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Say how a lit page has to be turned to stand upright.

    Args:
        page: float32 [3, ROOM, ROOM].
        size: float32 [2], its height and width.

    Returns:
        Quarter turns counter-clockwise, float32 [], and how sure that is.
    """
    side = size / _SHRINK
    logits = _scores(four_turns(_ink(page, side), side), side)
    probability = torch.softmax(logits, 0)
    return probability.argmax().to(torch.float32), probability.max()


def _ink(page: Tensor, side: Tensor) -> Tensor:
    """Ink of a page, float32 [_SIDE, _SIDE]: 0 on paper, about 1 on traces."""
    inside = _rectangle(side[0], side[1])
    small = torch.round(functional.avg_pool2d(page.amax(0)[None, None], _SHRINK))[0, 0] * inside
    rows, columns = (folded(_box, side[axis], _SIDE) for axis in range(2))
    dark = torch.clamp(rows @ small @ columns.T - small, min=0) * inside
    counted = (dark + FAR * (1 - inside)).reshape(1, -1)
    full = quantile(counted, inside.sum(), INK / 100, dark.max().reshape(1, 1))
    return torch.clamp(dark / torch.clamp(full, min=FAINTEST), max=1.5)


def _box(away: Tensor) -> Tensor:
    return true(torch.abs(away) < _BOX + 0.5)


def _rectangle(height: Tensor, width: Tensor, room: int = _SIDE) -> Tensor:
    """Mask [room, room] of the upper left."""
    return between(count(room), height * 0, height)[:, None] * between(count(room), width * 0, width)


def flip(side: Tensor, room: int) -> Tensor:
    """Matrix [room, room] that turns the first ``side`` entries round."""
    return true(torch.abs(count(room)[:, None] + count(room)[None] - side + 1) < 0.5)


def four_turns(picture: Tensor, side: Tensor) -> Tensor:
    """A picture in the upper left of a square, turned by 0 to 3 quarters, each there again: [4, n, n]."""
    room = length(picture)
    down, across = flip(side[0], room), flip(side[1], room)
    return torch.stack([picture, across @ picture.T, down @ picture @ across, picture.T @ down])


def _scores(pictures: Tensor, side: Tensor) -> Tensor:
    """How upright four thumbnails look: logits [4]."""
    features, room = pictures[:, None], _SIDE
    height = torch.stack([side[0], side[1], side[0], side[1]])
    width = torch.stack([side[1], side[0], side[1], side[0]])
    inside = array(1.0)
    with np.load(WEIGHTS) as stored:
        layers = [(stored[f"weight{k}"], stored[f"bias{k}"]) for k in range(len(stored.files) // 2)]
    for k, ((weight, bias), stride) in enumerate(zip(layers, STRIDES, strict=True)):
        kernel = array(weight.transpose(3, 2, 0, 1))
        features = functional.conv2d(
            features, kernel, array(bias), stride=stride, padding=weight.shape[0] // 2
        )
        height, width, room = torch.ceil(height / stride), torch.ceil(width / stride), -(-room // stride)
        # The reference has zeros beyond the page at every layer.
        inside = torch.stack([_rectangle(height[turn], width[turn], room) for turn in range(4)])
        features = (torch.relu(features) if k < len(layers) - 1 else features) * inside[:, None]
    return features[:, 0].sum((1, 2)) / inside.sum((1, 2))
