"""Render a 12-lead record as a paper ECG, geometrically exact.

Coordinates: millimetres are measured from the page's top left corner; pixels are indices, so the
centre of pixel ``i`` lies at ``i`` and ``px = mm * px_per_mm - 0.5``. Conventions of the paper
(1 mm and 5 mm grid, 25 mm/s, 10 mm/mV, 3x4 with a rhythm strip, 5 mm calibration pulse of 1 mV):
AHA/ACCF/HRS recommendations for the standardisation of the ECG, part I (Kligfield et al., 2007).

Not covered here: what a camera does to the page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.record import LEADS, Record
from pulse_edge.errors import UnknownNameError, UserError

# A layout lists its columns, each a tuple of leads from top to bottom, then the rhythm strips.
LAYOUTS: Final[dict[str, tuple[tuple[tuple[str, ...], ...], int]]] = {
    "3x4+1": ((LEADS[0:3], LEADS[3:6], LEADS[6:9], LEADS[9:12]), 1),
    "3x4": ((LEADS[0:3], LEADS[3:6], LEADS[6:9], LEADS[9:12]), 0),
    "6x2": ((LEADS[0:6], LEADS[6:12]), 0),
    "6x2+1": ((LEADS[0:6], LEADS[6:12]), 1),
    "12x1": ((LEADS,), 0),
}
# (minor, major) line colours, RGB.
GRID_COLOURS: Final[dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]]] = {
    "red": ((250, 205, 205), (235, 140, 140)),
    "pink": ((253, 222, 228), (244, 172, 186)),
    "orange": ((252, 222, 190), (240, 176, 120)),
    "green": ((205, 235, 205), (140, 200, 140)),
    "blue": ((208, 220, 248), (150, 172, 228)),
    "grey": ((222, 222, 222), (172, 172, 172)),
}
SPEEDS: Final = (25.0, 50.0)
GAINS: Final = (5.0, 10.0, 20.0)
CALIBRATION_MM: Final = 5.0
MARGIN_MM: Final = 14.7  # left and right of the traces; the calibration pulse stands in the left one
_SHIFT: Final = 6  # fractional bits of cv2's fixed-point coordinates


@dataclass(frozen=True)
class PaperStyle:
    """How a page looks. Lengths in millimetres, colours RGB.

    Attributes:
        layout: a key of :data:`LAYOUTS`.
        speed: mm per second, one of :data:`SPEEDS`.
        gain: mm per millivolt, one of :data:`GAINS`.
        dpi: pixels per inch, 40 to 600.
        size_mm: page width and height; US letter, landscape, by default.
        grid: a key of :data:`GRID_COLOURS`, or None for blank paper.
        header: lines of text at the top left.
        rhythm_lead: the lead of the long strips.
        start_s: where in the record the page begins.
    """

    layout: str = "3x4+1"
    speed: float = 25.0
    gain: float = 10.0
    dpi: float = 200.0
    size_mm: tuple[float, float] = (279.4, 215.9)
    grid: str | None = "red"
    paper: tuple[int, int, int] = (255, 255, 255)
    ink: tuple[int, int, int] = (15, 15, 25)
    trace_mm: float = 0.3
    calibration: bool = True
    lead_names: bool = True
    header: tuple[str, ...] = ()
    header_mm: float = 24.0
    rhythm_lead: str = "II"
    start_s: float = 0.0


@dataclass(frozen=True)
class Strip:
    """Where one piece of one lead stands on the page.

    Attributes:
        lead: its name.
        x: pixel column of its first instant.
        y: pixel row of 0 mV.
        start_s: the instant in the record at ``x``.
        duration_s: how long the piece is.
    """

    lead: str
    x: float
    y: float
    start_s: float
    duration_s: float


@dataclass(frozen=True)
class Page:
    """A rendered page.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        px_per_mm: scale, the same in both directions.
        px_per_s: ``px_per_mm * speed``.
        px_per_mv: ``px_per_mm * gain``; upwards is towards row 0.
        strips: every trace on the page, in drawing order.
    """

    image: NDArray[np.uint8]
    px_per_mm: float
    px_per_s: float
    px_per_mv: float
    strips: tuple[Strip, ...] = field(default=())


def render(record: Record, style: PaperStyle | None = None) -> Page:
    """Render a record as a page.

    Args:
        record: 12 leads in millivolt; NaN samples leave a gap in the trace.
        style: the look; the default is the page that evaluation uses.

    Returns:
        The page and the exact place of every strip.

    Raises:
        UnknownNameError: unknown layout, grid colour or rhythm lead.
        UserError: another value of the style is out of range, or ``start_s`` does not lie within
            the record.
    """
    style = style or PaperStyle()
    _check(style)
    scale = style.dpi / 25.4
    image = _blank(style.size_mm, style.dpi, style.grid, style.paper).copy()
    strips = _place(record, style)
    thickness = max(1, round(style.trace_mm * scale))
    for strip in strips:
        _draw_trace(image, record, strip, style, thickness)
    _annotate(image, strips, style, thickness)
    return Page(image, scale, scale * style.speed, scale * style.gain, strips)


def blank(style: PaperStyle | None = None) -> NDArray[np.uint8]:
    """Return the page of a style without any trace or text: uint8 [H, W, 3], the blank-image control."""
    style = style or PaperStyle()
    _check(style)
    return _blank(style.size_mm, style.dpi, style.grid, style.paper).copy()


def _check(style: PaperStyle) -> None:
    if style.layout not in LAYOUTS:
        raise UnknownNameError("layout", style.layout, LAYOUTS)
    if style.grid is not None and style.grid not in GRID_COLOURS:
        raise UnknownNameError("grid colour", style.grid, GRID_COLOURS)
    if style.rhythm_lead not in LEADS:
        raise UnknownNameError("lead", style.rhythm_lead, LEADS)
    if style.speed not in SPEEDS:
        raise UserError(f"The paper speed is {style.speed:g} mm/s; choose one of 25 and 50.")
    if style.gain not in GAINS:
        raise UserError(f"The gain is {style.gain:g} mm/mV; choose one of 5, 10 and 20.")
    if not 40 <= style.dpi <= 600:
        raise UserError(f"The resolution is {style.dpi:g} dpi; choose a value from 40 to 600.")
    if not all(60 <= side <= 600 for side in style.size_mm):
        raise UserError(f"The page is {style.size_mm} mm; each side must be from 60 to 600 mm.")


@lru_cache(maxsize=16)
def _blank(
    size_mm: tuple[float, float], dpi: float, grid: str | None, paper: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Paper and grid. Lines are 0.1 mm (minor) and 0.2 mm (major) wide, drawn by pixel coverage."""
    scale = dpi / 25.4
    width, height = round(size_mm[0] * scale), round(size_mm[1] * scale)
    row = np.broadcast_to(np.asarray(paper, np.float32), (width, 3))
    lines = []
    if grid is not None:
        for step, line_mm, colour in zip((1, 5), (0.1, 0.2), GRID_COLOURS[grid], strict=True):
            across, down = _coverage(width, scale, step, line_mm), _coverage(height, scale, step, line_mm)
            lines.append((across, down, np.asarray(colour, np.float32)))
    image = np.empty((height, width, 3), np.uint8)
    image[:] = np.round(_rule(row, [(across, colour) for across, _, colour in lines]))
    # Only rows that a horizontal line touches differ from that; few, so this is most of the speed.
    for r in np.flatnonzero(sum((down for _, down, _ in lines), np.zeros(height, np.float32))):
        image[r] = np.round(_rule(row, [(np.maximum(across, down[r]), c) for across, down, c in lines]))
    return image


def _rule(
    row: NDArray[np.float32], lines: list[tuple[NDArray[np.float32], NDArray[np.float32]]]
) -> NDArray[np.float32]:
    """Lay lines, each a coverage [W] and a colour [3], over one row of pixels [W, 3]."""
    for alpha, colour in lines:
        row = row + (colour - row) * alpha[:, None]
    return row


def _coverage(n: int, scale: float, step_mm: int, line_mm: float) -> NDArray[np.float32]:
    """How much of each of ``n`` pixels is covered by lines every ``step_mm``, float32 [n] in 0..1."""
    edges = np.arange(n + 1) / scale
    # Length covered by lines from 0 up to each pixel edge, whose differences are the coverages.
    phase = edges + line_mm / 2
    covered = np.floor(phase / step_mm) * line_mm + np.minimum(phase % step_mm, line_mm)
    return (np.diff(covered) * scale).clip(0, 1).astype(np.float32)


def _place(record: Record, style: PaperStyle) -> tuple[Strip, ...]:
    columns, rhythm = LAYOUTS[style.layout]
    scale = style.dpi / 25.4
    shown = min((style.size_mm[0] - 2 * MARGIN_MM) / style.speed, record.duration - style.start_s)
    if not (style.start_s >= 0 and shown > 0):
        raise UserError(
            f"The page would begin at {style.start_s:g} s, but the record lasts {record.duration:g} s. "
            "Choose a start within it."
        )
    rows = len(columns[0]) + rhythm
    pitch = (style.size_mm[1] - style.header_mm - 6.0) / rows
    each = shown / len(columns)

    def y(row: int) -> float:
        return (style.header_mm + pitch * (row + 0.5)) * scale - 0.5

    strips = [
        Strip(lead, (MARGIN_MM + c * each * style.speed) * scale - 0.5, y(r), style.start_s + c * each, each)
        for c, leads in enumerate(columns)
        for r, lead in enumerate(leads)
    ]
    x = MARGIN_MM * scale - 0.5
    strips += [Strip(style.rhythm_lead, x, y(rows - 1 - k), style.start_s, shown) for k in range(rhythm)]
    return tuple(strips)


def _draw_trace(
    image: NDArray[np.uint8], record: Record, strip: Strip, style: PaperStyle, thickness: int
) -> None:
    scale = style.dpi / 25.4
    signal = record.signal[LEADS.index(strip.lead)]
    # The strip's two ends rarely fall on samples: they are interpolated, so that its length is exact.
    first, last = strip.start_s * record.fs, (strip.start_s + strip.duration_s) * record.fs
    inner = np.arange(np.floor(first) + 1, min(np.ceil(last), len(signal)))
    at = np.concatenate(([first], inner, [min(last, len(signal) - 1)]))
    mv = np.interp(at, np.arange(len(signal)), signal)
    x = strip.x + (at / record.fs - strip.start_s) * style.speed * scale
    y = strip.y - mv * style.gain * scale
    _polyline(image, x, y, style.ink, thickness)


def _polyline(
    image: NDArray[np.uint8],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    colour: tuple[int, int, int],
    thickness: int,
) -> None:
    """Draw an anti-aliased line through points, in pixels; it breaks where one is not finite."""
    limit = 4.0 * max(image.shape)  # keeps absurd amplitudes inside cv2's integer range
    points = np.stack([x, np.clip(y, -limit, limit)], axis=1)
    good: NDArray[np.bool_] = np.isfinite(x) & np.isfinite(y)
    for piece in np.split(np.arange(len(points)), np.flatnonzero(np.diff(good.astype(np.int8))) + 1):
        if len(piece) > 1 and bool(np.all(good[piece])):
            fixed = np.round(points[piece] * (1 << _SHIFT)).astype(np.int32)
            cv2.polylines(image, [fixed], False, colour, thickness, cv2.LINE_AA, _SHIFT)


def _annotate(image: NDArray[np.uint8], strips: tuple[Strip, ...], style: PaperStyle, thickness: int) -> None:
    scale = style.dpi / 25.4
    left = min(strip.x for strip in strips)
    if style.calibration:
        for y0 in sorted({strip.y for strip in strips}):
            base, top = y0, y0 - style.gain * scale
            steps = np.array([-7.0, -6.0, -6.0, -6.0 + CALIBRATION_MM, -6.0 + CALIBRATION_MM, 0.0])
            _polyline(
                image,
                left + steps * scale,
                np.array([base, base, top, top, base, base]),
                style.ink,
                thickness,
            )
    if style.lead_names:
        for strip in strips:
            _text(image, strip.lead, strip.x + 1.2 * scale, strip.y - 7.5 * scale, 3.2, style)
    for k, line in enumerate(style.header):
        _text(image, line, MARGIN_MM * scale, (8 + 5 * k) * scale, 3.0, style)
    _text(
        image,
        f"{style.speed:g} mm/s  {style.gain:g} mm/mV",
        MARGIN_MM * scale,
        (style.size_mm[1] - 2.5) * scale,
        2.6,
        style,
    )


def _text(
    image: NDArray[np.uint8], text: str, x: float, y: float, height_mm: float, style: PaperStyle
) -> None:
    """Write text with its capitals ``height_mm`` high, its lower left corner at (x, y) pixels."""
    size = height_mm * style.dpi / 25.4 / 21.0  # Hershey capitals are 21 px high at scale 1
    cv2.putText(
        image,
        text.encode("ascii", "replace").decode(),
        (round(x), round(y)),
        cv2.FONT_HERSHEY_SIMPLEX,
        size,
        style.ink,
        max(1, round(size * 1.6)),
        cv2.LINE_AA,
    )
