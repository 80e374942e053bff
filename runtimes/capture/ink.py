"""Ink on a sheet: what is darker than the paper, and which of it is a trace.

A trace is what the printed grid is not and text is not: dark in every colour channel, not repeated every
5 mm, and connected over more than a centimetre.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.runtimes.capture.sheet import SCALE, Sheet

CELL: Final = round(5 * SCALE)  # pixels of the 5 mm grid
_LINE: Final = 5  # half-scale pixels, 2.5 mm: no stroke of a pen is as wide
_DARK: Final = (0.16, 0.22)  # of the paper's brightness: bounds of what counts as ink
_ABOVE_REST: Final = 3.0  # ink is so many times darker than nine tenths of the page
_LONG_MM: Final = 10.0  # a connected trace; words are shorter
_ROW_REACH_MM: Final = 2.0  # a row's trace lies within this of one height, most of the time
_ROW_PITCH_MM: Final = 8.0  # rows are at least so far apart
_SPECK_MM: Final = 4.0
_ROW_SHARE: Final = 0.4  # of the widest extent of traces that a row covers

Singles = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """One line of traces across the page.

    Attributes:
        y_mm: height of most of it.
        x_mm: where it begins and ends.
        covered: share of that span in which there is a trace, within a few millimetres of ``y_mm``.
        swing_mm: how far it strays from ``y_mm`` in the outermost hundredth of columns.
        alone: share of columns that hold one stroke of ink near ``y_mm`` and no other: writing has several.
        step: by how much the brightness of paper above and below differs; large at the edge of a sheet.
    """

    y_mm: float
    x_mm: tuple[float, float]
    covered: float
    swing_mm: float
    alone: float
    step: float


@dataclass(frozen=True)
class Ink:
    """What is printed.

    Attributes:
        paper: float32 [h, w], grey level of bare paper.
        lines: float32 [h, w], how much darker than paper in grey, -0.5 to 0.5, traces taken out: the grid.
        dark: float32 [h, w], how much darker in the brightest channel, what recurs every 5 mm taken out.
        trace: bool [h, w], connected traces.
        rows: from top to bottom.
    """

    paper: Singles
    lines: Singles
    dark: Singles
    trace: Mask
    rows: tuple[Row, ...]


def find_ink(sheet: Sheet) -> Ink:
    """Separate paper, grid and traces of a sheet."""
    grey = np.asarray(cv2.cvtColor(sheet.image, cv2.COLOR_RGB2GRAY), np.uint8)
    paper = paper_level(grey)
    lines = _darkness(grey, paper, sheet.seen)
    # cv2.max of the channels: numpy reduces over an axis of three very slowly.
    brightest = np.asarray(functools.reduce(cv2.max, cv2.split(sheet.image)), np.uint8)
    dark = _without_grid(_darkness(brightest, paper_level(brightest), sheet.seen), sheet.seen)
    ink = _inked(dark, sheet.seen)
    trace = _connected(ink)
    lines[cv2.dilate(trace.astype(np.uint8), np.ones((3, 3))) > 0] = 0
    return Ink(paper, lines.clip(-0.5, 0.5), dark, trace, find_rows(sheet, _Print(paper, ink, trace)))


def paper_level(grey: NDArray[np.uint8]) -> Singles:
    """Return the brightness of the bare paper around each pixel: uint8 [h, w] to float32 [h, w]."""
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    bright = cv2.dilate(half, np.ones((_LINE, _LINE)))
    even = cv2.GaussianBlur(cv2.erode(bright, np.ones((2 * _LINE - 1, 2 * _LINE - 1))), (0, 0), 4)
    return np.asarray(cv2.resize(even, (grey.shape[1], grey.shape[0])), np.float32)


def _darkness(grey: NDArray[np.uint8], paper: Singles, seen: Mask) -> Singles:
    return np.asarray((paper - grey) / np.maximum(paper, 8) * seen, np.float32)


def _without_grid(dark: Singles, seen: Mask) -> Singles:
    """Take out what most squares of 5 mm share; it matters where grid and traces have one colour."""
    height, width = (side // CELL for side in dark.shape)
    if not height * width:
        return dark
    inner = np.s_[: height * CELL, : width * CELL]
    cells = dark[inner].reshape(height, CELL, width, CELL).swapaxes(1, 2)
    whole = seen[inner].reshape(height, CELL, width, CELL).all(axis=(1, 3))
    if not whole.any():
        return dark
    usual = np.median(cells[whole][::3] if whole.sum() > 300 else cells[whole], axis=0)
    tiled = np.tile(usual, (height + 1, width + 1))[: dark.shape[0], : dark.shape[1]]
    return np.clip(dark - tiled.astype(np.float32), 0, 1)


def _inked(dark: Singles, seen: Mask) -> NDArray[np.uint8]:
    rest = float(np.percentile(dark[seen], 90)) if seen.any() else 0.0
    ink = (dark > float(np.clip(_ABOVE_REST * rest, *_DARK))).astype(np.uint8)
    return np.asarray(cv2.morphologyEx(ink, cv2.MORPH_CLOSE, np.ones((3, 3))), np.uint8)


def _connected(ink: NDArray[np.uint8]) -> Mask:
    _, label, stats, _ = cv2.connectedComponentsWithStats(ink, connectivity=8)
    wide = stats[:, cv2.CC_STAT_WIDTH] >= _LONG_MM * SCALE
    wide[0] = False  # what is no ink
    return np.asarray(wide[label])


@dataclass(frozen=True)
class _Print:
    """What rows are looked for in."""

    paper: Singles
    ink: NDArray[np.uint8]
    trace: Mask


def find_rows(sheet: Sheet, prints: _Print) -> tuple[Row, ...]:
    """Find the heights at which traces run across the page."""
    trace = prints.trace
    columns = np.flatnonzero(trace.any(axis=0))
    if not len(columns):
        return ()
    reach = round(_ROW_REACH_MM * SCALE)
    near = cv2.dilate(trace.astype(np.uint8), np.ones((2 * reach + 1, 1)))
    # Long vertical strokes, which some machines draw between leads, are no part of a row.
    upright = cv2.erode(trace.astype(np.uint8), np.ones((round(6 * SCALE), 1)))
    near[cv2.dilate(upright, np.ones((4 * reach, 3))) > 0] = 0
    share = near.sum(axis=1) / max(1, columns[-1] - columns[0])
    share = np.convolve(share, np.ones(reach) / reach, mode="same")
    rows = []
    while share.max() > _ROW_SHARE:
        y = int(share.argmax())
        row = _row(sheet, prints, y, reach)
        if row is not None:
            rows.append(row)
        pitch = round(_ROW_PITCH_MM * SCALE)
        share[max(0, y - pitch) : y + pitch] = 0
    return tuple(sorted(rows, key=lambda row: row.y_mm))


def _row(sheet: Sheet, prints: _Print, y: int, reach: int) -> Row | None:
    """Follow one row; None if nothing of it is longer than a few millimetres."""
    low, high = max(0, y - 2 * reach), y + 2 * reach + 1
    trace = prints.trace
    band = trace[low:high]
    columns = _without_specks(np.asarray(band.any(axis=0)), round(_SPECK_MM * SCALE))
    if not len(columns):
        return None
    first, last = int(columns[0]), int(columns[-1])
    count = np.maximum(band.sum(axis=0)[columns], 1)
    middle = float(np.median((np.arange(len(band))[:, None] * band[:, columns]).sum(0) / count)) + low
    begin = max(0, y - 5 * reach)
    top = np.argmax(trace[begin : y + 5 * reach, columns], axis=0) + begin
    swing = float(np.percentile(np.abs(top - middle), 99)) / SCALE
    strokes = (np.diff(prints.ink[low:high, columns].astype(np.int8), axis=0, prepend=0) > 0).sum(axis=0)
    above = np.median(prints.paper[max(0, y - 2 * reach), columns])
    below = np.median(prints.paper[min(len(trace) - 1, y + 2 * reach), columns])
    return Row(
        y_mm=sheet.origin_mm[1] + middle / SCALE,
        x_mm=(sheet.origin_mm[0] + first / SCALE, sheet.origin_mm[0] + last / SCALE),
        covered=len(columns) / (last - first + 1),
        swing_mm=swing,
        alone=float((strokes == 1).mean()),
        step=float(abs(above - below) / max(above, below, 1.0)),
    )


def _without_specks(has: Mask, least: int) -> NDArray[np.intp]:
    """Return the indices of runs of True that are long enough: a sheet's edge across a row is not."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], has, [False])).astype(np.int8)))
    runs = [np.arange(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= least]
    return np.concatenate(runs) if runs else np.zeros(0, np.intp)
