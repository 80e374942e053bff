"""The trace inside every visual token's cell: what a tower that reads curves has to know.

Labels say one word about a page and its measurements a few numbers; the trace says, at every token,
where the ink runs. Learning to tell it (a dense target, as in segmentation) teaches a small tower to
read curves in a fraction of the pages. The truth is free: the renderer knows where it drew.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.contract import IGNORE_ID, TILE_SIZE
from pulse_edge.ecg.leads import LEADS
from pulse_edge.ecg.paper import Page
from pulse_edge.ecg.record import Record
from pulse_edge.ecg.vary import Places
from pulse_edge.model.preprocess import geometry

REACH: Final = 1.5  # cells; a taller complex is said to end there


def cell_traces(
    page: Page, record: Record, places: Places, cell: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the trace in the cell of every token of the page's tiles, and the lead it belongs to.

    A token answers for the trace whose zero line crosses its cell (the nearest to the middle, where
    there are several): its height at every pixel column of the cell.

    Args:
        page: a rendered page.
        record: what was drawn on it.
        places: where the page's pixels are on the picture, which is of the same size.
        cell: the token's pitch in pixels of the tile.

    Returns:
        float32 [tiles, tokens per tile, cell], the base view not counted: height of the trace above
        the middle of the cell, in cells; NaN where no zero line crosses or the trace is not drawn.
        int64 [tiles, tokens per tile]: index of the lead in ``LEADS``, -100 where there is none.
    """
    height, width = page.image.shape[:2]
    place = geometry(width, height)
    across, down = (side // cell for side in place.best)
    columns = np.arange(place.best[0])
    out = np.full((down, across, cell), np.nan, np.float32)
    leads = np.full((down, across), IGNORE_ID, np.int64)
    nearest = np.full((down, across), np.inf)
    for strip in page.strips:
        first = int(np.ceil(strip.start_s * record.fs))
        last = int(min((strip.start_s + strip.duration_s) * record.fs, record.signal.shape[1] - 1))
        at = np.arange(first, last + 1)
        mv = record.signal[LEADS.index(strip.lead), first : last + 1]
        x = strip.x + (at / record.fs - strip.start_s) * page.px_per_s
        line = np.full(len(x), strip.y)
        drawn = strip.y - mv.astype(np.float64) * page.px_per_mv
        zero, trace = (
            _on_canvas(places(x, y), place.resized, (width, height), place.paste) for y in (line, drawn)
        )
        base = np.interp(columns, *zero, left=np.nan, right=np.nan)
        ink = np.interp(columns, *trace, left=np.nan, right=np.nan)
        for column in range(across):
            window = slice(column * cell, (column + 1) * cell)
            middle = base[column * cell + cell // 2]
            row = int(middle // cell) if np.isfinite(middle) else -1
            if not 0 <= row < down:
                continue
            centre = (row + 0.5) * cell - 0.5
            if abs(middle - centre) < nearest[row, column]:
                nearest[row, column] = abs(middle - centre)
                leads[row, column] = LEADS.index(strip.lead)
                out[row, column] = np.clip((centre - ink[window]) / cell, -REACH, REACH)
    side = TILE_SIZE // cell
    into = (down // side, side, across // side, side)
    traces = out.reshape(*into, cell).swapaxes(1, 2).reshape(-1, side * side, cell)
    return traces, leads.reshape(into).swapaxes(1, 2).reshape(-1, side * side)


def _on_canvas(
    picture: NDArray[np.float64], resized: tuple[int, int], size: tuple[int, int], paste: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Picture -> the padded canvas from which tiles are cut; what the picture does not show is dropped."""
    shown = np.all((picture > -0.5) & (picture < np.array(size) - 0.5), axis=1)
    canvas = (picture[shown] + 0.5) * (np.array(resized) / np.array(size)) - 0.5 + np.array(paste)
    if not len(canvas):
        canvas = np.full((1, 2), np.nan)
    # On turned paper a steep line runs a little backwards; interpolation needs columns that never do.
    return np.maximum.accumulate(canvas[:, 0]), canvas[:, 1]
