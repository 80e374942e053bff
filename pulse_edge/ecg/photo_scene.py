"""What lies on a photographed page (handwriting, worn creases) and around it (tables).

Everything is drawn by rule from a seed: no picture of anybody's hand or table is involved.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.photo_style import Fold, PhotoStyle

Image = NDArray[np.uint8]
_SHIFT = 6  # fractional bits of cv2's fixed-point coordinates
_TABLE_SIDE = 420  # pixels: a table is drawn no finer, since the camera focuses on the page
_PENS = ((25, 35, 120), (20, 20, 30), (30, 60, 160), (170, 25, 35))  # RGB
_TABLES = {  # (darkest, lightest) base colours, RGB
    "plain": ((40, 42, 48), (215, 210, 200)),
    "wood": ((70, 42, 24), (190, 142, 96)),
    "cloth": ((30, 50, 80), (205, 205, 210)),
    "clutter": ((60, 60, 60), (190, 185, 175)),
}


def mark_page(page: Image, px_per_mm: float, style: PhotoStyle, rng: np.random.Generator) -> Image:
    """Write notes on a page and wear its creases; the page comes back untouched where there are none.

    Args:
        page: uint8 [H, W, 3].
        px_per_mm: its scale.
        style: ``notes``, ``folds`` and ``worn`` are used.
        rng: the source of chance.

    Returns:
        The page itself or a marked copy, of the same shape.
    """
    worn = [fold for fold in style.folds if style.worn > 0]
    if not (style.notes or worn):
        return page
    page = page.copy()
    for fold in worn:
        _wear(page, px_per_mm, fold, style.worn, rng)
    pen, nib = _PENS[rng.integers(len(_PENS))], rng.uniform(0.25, 0.6)
    size = np.array(page.shape[1::-1]) / px_per_mm
    for _ in range(style.notes):
        kind = rng.choice(4, p=(0.55, 0.15, 0.15, 0.15))
        strokes = (_word, _tick, _ring, _underline)[kind](rng)
        # Headers and margins are where people write most.
        where = rng.uniform(0.02, 0.85, 2) * size
        if rng.random() < 0.5:
            where[1] = rng.uniform(0.02, 0.16) * size[1]
        angle = rng.normal(0, 0.12)
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        for stroke in strokes:
            points = np.round(((where + stroke @ turn) * px_per_mm - 0.5) * (1 << _SHIFT)).astype(np.int32)
            cv2.polylines(page, [points], False, pen, max(1, round(nib * px_per_mm)), cv2.LINE_AA, _SHIFT)
    return page


def _wear(page: Image, px_per_mm: float, fold: Fold, share: float, rng: np.random.Generator) -> None:
    """Lay bare paper in dashes along a crease."""
    angle = math.radians(fold.direction_deg)
    across = np.array([math.cos(angle), math.sin(angle)])
    along = np.array([-across[1], across[0]])
    half = np.array(page.shape[1::-1]) / px_per_mm / 2
    length = float(np.hypot(*half))
    ends = np.sort(rng.uniform(-length, length, (60, 1)), axis=0)
    ends = np.hstack([ends, ends + rng.exponential(2 * length / 60 * share, (60, 1))])
    dashes = (half + fold.offset_mm * across + ends[..., None] * along) * px_per_mm - 0.5
    bare = tuple(int(v) for v in np.minimum(page[::16, ::16].reshape(-1, 3).max(0), 245))
    thick = max(1, round(0.35 * px_per_mm))
    for dash in np.round(dashes * (1 << _SHIFT)).astype(np.int32):
        cv2.polylines(page, [dash], False, bare, thick, cv2.LINE_AA, _SHIFT)


def _word(rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Joined loops of changing height, as of a pen that runs to the right; in mm."""
    letters = int(rng.integers(3, 10))
    t = np.linspace(0, letters, letters * 12)
    tall = np.interp(t, np.arange(letters + 1), rng.choice((1.2, 2.0, 3.4), letters + 1, p=(0.3, 0.45, 0.25)))
    x = 2.6 * t + rng.uniform(0.5, 1.0) * np.sin(2 * np.pi * t + rng.uniform(0, 6))
    y = -tall * np.cos(2 * np.pi * t + rng.uniform(0, 6)) / 2
    y += np.interp(t, np.arange(letters + 1), rng.normal(0, 0.25, letters + 1))
    return [np.stack([x, y], 1) * rng.uniform(1.0, 2.2)]


def _tick(rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """A check mark, or a cross."""
    size = rng.uniform(3, 8)
    if rng.random() < 0.3:
        return [np.array([[0, 0], [1, 1.0]]) * size, np.array([[1, 0], [0, 1.0]]) * size]
    return [np.array([[0, 0.6], [0.3, 1.0], [1.1, rng.uniform(-0.3, 0.1)]]) * size]


def _ring(rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """A loop around something; it rarely closes."""
    t = np.linspace(0, 2 * np.pi * rng.uniform(0.9, 1.2), 40) + rng.uniform(0, 6)
    wide, high = rng.uniform(5, 22), rng.uniform(4, 12)
    drift = np.linspace(0, rng.uniform(-1.5, 1.5), 40)
    return [np.stack([wide * np.cos(t) + drift, high * np.sin(t) + drift], 1)]


def _underline(rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """One or two strokes below something."""
    x = np.linspace(0, rng.uniform(10, 50), 12)
    sag = np.cumsum(rng.normal(0, 0.12, 12))
    return [np.stack([x, sag + 1.4 * k], 1) for k in range(int(rng.integers(1, 3)))]


def table(
    kind: str, size: tuple[int, int], inward_mm: NDArray[np.float32], rng: np.random.Generator
) -> Image:
    """Make what a page lies on.

    Args:
        kind: a name in ``BACKGROUNDS``.
        size: width and height in pixels.
        inward_mm: float32 [height, width], distance from the page's edge, negative off the page; the sheet
            darkens the table next to it.
        rng: the source of chance.

    Returns:
        uint8 [height, width, 3].
    """
    coarse = math.ceil(max(size) / _TABLE_SIDE)
    small = (math.ceil(size[0] / coarse), math.ceil(size[1] / coarse))
    dark, light = (np.array(colour, np.float32) for colour in _TABLES[kind])
    base = dark + (light - dark) * np.float32(rng.random())
    # Uneven at every scale; in wood one part is stretched along the grain, and rings run beside it.
    bright = _noise(small, 6, 6, rng) * np.float32(0.10) + _noise(small, 60, 60, rng) * np.float32(0.04)
    if kind == "wood":
        rings = np.linspace(0, rng.uniform(6, 16), small[1], dtype=np.float32)[:, None]
        bright += np.float32(0.10) * np.sin(np.float32(2 * np.pi) * (_noise(small, 3, 24, rng) * 2 + rings))
        bright += np.float32(0.08) * _noise(small, 4, 200, rng)
    elif kind == "cloth":
        pitch = rng.uniform(2.5, 6) * max(small) / _TABLE_SIDE
        row = np.sin(np.arange(small[0], dtype=np.float32) * np.float32(2 * np.pi / pitch))
        column = np.sin(np.arange(small[1], dtype=np.float32) * np.float32(2 * np.pi / pitch))
        bright += np.float32(0.12) * column[:, None] * row
    picture = np.clip((1 + bright)[..., None] * base, 0, 255)
    if kind == "clutter":
        for _ in range(int(rng.integers(4, 14))):
            centre, sides = rng.random(2) * small, rng.uniform(0.05, 0.5, 2) * max(small)
            corners = cv2.boxPoints((centre.tolist(), sides.tolist(), float(rng.uniform(0, 90))))
            colour = [int(v) for v in rng.integers(15, 240, 3)]
            cv2.fillConvexPoly(picture, np.round(corners).astype(np.int32), colour, cv2.LINE_8)
    near = cv2.resize(inward_mm, small, interpolation=cv2.INTER_NEAREST)
    picture *= 1 - np.float32(0.45) * np.exp(np.minimum(near, 0) / np.float32(3))[..., None]
    return np.asarray(cv2.resize(picture.astype(np.uint8), size, interpolation=cv2.INTER_LINEAR), np.uint8)


def _noise(size: tuple[int, int], across: int, down: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise of standard deviation near 1 with so many bumps each way: float32 [height, width]."""
    bumps = rng.standard_normal((down, across), dtype=np.float32)
    return np.asarray(cv2.resize(bumps, size, interpolation=cv2.INTER_CUBIC), np.float32)
