"""The upright page cut into PULSE's tiles, as `pulse_edge/model/preprocess.py` does it with Pillow."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from pulse_edge.contract import IMAGE_MEAN, IMAGE_STD, MAX_TILES, TILE_SIZE
from pulse_edge.export.capture_graph.page import CELLS, PX_PER_CELL, ROOM
from pulse_edge.export.capture_graph.plain import array, count, pick, true
from pulse_edge.model.preprocess import geometry

_MOST: Final = 3  # tiles in a row or column


def cut(page: Tensor, size: Tensor, quarters: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a page upright and cut it.

    Args:
        page: float32 [3, ROOM, ROOM], grey levels.
        size: float32 [2], its height and width.
        quarters: float32 [], turns counter-clockwise.

    Returns:
        float32 [MAX_TILES, 3, 336, 336], normalised, and how many of them count; the rest is zeros.
    """
    lying = true(quarters > 0.5) * true(quarters < 1.5) + true(quarters > 2.5)
    # Of the turned page: which of its sides run against the page's.
    upside = true(quarters > 0.5) * true(quarters < 2.5)
    mirrored = true(quarters > 1.5)
    page = torch.where(lying > 0.5, page.transpose(1, 2), page)
    size = lying * size.flip(0) + (1 - lying) * size
    cells = size / PX_PER_CELL
    place = pick(array(_places()), (cells[0] * (CELLS + 1) + cells[1])[None])[0]
    across, down = place[0], place[1]
    columns = _all_tiles(size[1], place[2], place[4], mirrored)
    rows = _all_tiles(size[0], place[3], place[5], upside)
    wide = _levels(page.reshape(-1, ROOM) @ columns.reshape(-1, ROOM).T)
    wide = wide.reshape(3, ROOM, 1 + _MOST, TILE_SIZE).permute(2, 0, 1, 3)
    number = count(MAX_TILES)
    row = torch.floor((number - 0.5) / across) * true(number > 0.5)
    column = number - 1 - row * across
    # The squashed view is number 0 of both; tiles that do not exist repeat the last.
    row, column = (torch.clamp((part + 1) * true(number > 0.5), 0, _MOST) for part in (row, column))
    views = _levels(pick(rows, row)[:, None] @ pick(wide, column))
    mean, std = (array(values)[None, :, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    shown = across * down + 1
    return (views / 255 - mean) / std * true(number < shown - 0.5)[:, None, None, None], shown


def _places() -> np.ndarray:
    """Of every page of whole cells, by rows and columns: grid across and down, width and height, offsets."""
    table = np.ones(((CELLS + 1) ** 2, 6))
    for rows in range(1, CELLS + 1):
        for columns in range(1, CELLS + 1):
            place = geometry(columns * PX_PER_CELL, rows * PX_PER_CELL)
            table[rows * (CELLS + 1) + columns] = (*place.grid, *place.resized, *place.paste)
    return table


def _all_tiles(side: Tensor, resized: Tensor, paste: Tensor, reverse: Tensor) -> Tensor:
    """Pillow's bicubic coefficients of the squashed view and the tiles in a row: [1 + _MOST, 336, ROOM]."""
    base = _bicubic(side, array(TILE_SIZE), count(TILE_SIZE), reverse)
    tiles = _bicubic(side, resized, count(_MOST * TILE_SIZE) - paste, reverse)
    return torch.cat([base, tiles]).reshape(1 + _MOST, TILE_SIZE, ROOM)


def _bicubic(side: Tensor, length: Tensor, pixel: Tensor, reverse: Tensor) -> Tensor:
    """Coefficients [n, ROOM] that make pixels of a resized side out of the first ``side`` entries.

    Args:
        side: entries of the page.
        length: of the resized side.
        pixel: [n], on the resized side; what lies beside it is black.
        reverse: 1 if the page's entries run the other way.
    """
    step = side / length
    source = count(ROOM)
    source = reverse * (side - 1 - source) + (1 - reverse) * source
    away = torch.abs(source[None] - ((pixel[:, None] + 0.5) * step - 0.5)) / torch.clamp(step, min=1.0)
    inner = (1.5 * away - 2.5) * away * away + 1
    outer = ((-0.5 * away + 2.5) * away - 4) * away + 2
    weight = inner * true(away < 1) + outer * true(away >= 1) * true(away < 2)
    weight = weight * true(count(ROOM) < side - 0.5)
    weight = weight / torch.clamp(weight.sum(1, keepdim=True), min=0.05)
    return weight * (true(pixel > -0.5) * true(pixel < length - 0.5))[:, None]


def _levels(values: Tensor) -> Tensor:
    """Whole grey levels, as Pillow has them after each pass."""
    return torch.clamp(torch.floor(values + 0.5), 0, 255)
