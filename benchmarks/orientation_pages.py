"""Pages that teach the orientation network: real ECGs, drawn in as many manners as machines have.

Black on white, with whatever a flattened photo may leave of a grid. Where labels stand, in which type, how
far rows are apart, whether there are headers, calibration pulses or separators: all is drawn by chance, and
what is learnt from is a random cut.
"""

from __future__ import annotations

import random

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pulse_edge.ecg.paper import LAYOUTS, Page, PaperStyle, render
from pulse_edge.ecg.record import LEADS, Record

Image8 = NDArray[np.uint8]

SCALE = 4.0  # px/mm of the drawing
_TYPEFACES = (
    *("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    *("DejaVuSansMono.ttf", "DejaVuSerif-Italic.ttf", "DejaVuSansCondensed.ttf"),
)
_WORDS = (
    *("Vent. rate", "PR interval", "QRS duration", "QT/QTc", "P-R-T axes", "Sinus rhythm", "Abnormal ECG"),
    *("25mm/s", "10mm/mV", "0.05-40 Hz", "Name:", "ID:", "Male", "Female", "BPM", "ms", "Confirmed by:"),
    *("Borderline", "left axis deviation", "ST elevation", "12SL", "150 Hz", "Unconfirmed", "F 50~", "Age"),
)


def draw_page(record: Record, rng: random.Random) -> Image8:
    """Draw one page: uint8 [h, w], black on white, at :data:`SCALE`."""
    rows = {"3x4+1": 4, "3x4": 3, "6x2": 6, "6x2+1": 7, "12x1": 12}
    layout = rng.choices(list(LAYOUTS), (5, 3, 2, 1, 1))[0]
    header = rng.choice((2.0, 8.0, 24.0, 34.0))
    pitch = rng.uniform(16, 42) if rows[layout] < 6 else rng.uniform(11, 24)
    style = PaperStyle(
        layout=layout,
        speed=25.0 if rng.random() < 0.9 else 50.0,
        gain=rng.choices((5.0, 10.0, 20.0), (1, 8, 1))[0],
        dpi=SCALE * 25.4,
        size_mm=(rng.uniform(200, 300), max(60.0, header + 6 + pitch * rows[layout])),
        grid=None,
        ink=(0, 0, 0),
        trace_mm=rng.choice((0.25, 0.4, 0.55)),
        calibration=rng.random() < 0.6,
        lead_names=False,
        header_mm=header,
        rhythm_lead=rng.choice(("II", "V1", "V5", "II")),
        start_s=rng.uniform(0, max(0.0, record.duration - 9.5)),
    )
    page = render(record, style)
    grey = Image.fromarray(page.image[..., 0].copy())
    pen = ImageDraw.Draw(grey)
    if rng.random() < 0.75:
        _label(pen, page, rng)
    if header > 10 and rng.random() < 0.7:
        _write_header(pen, header, style.size_mm[0], rng)
    image = np.array(grey)
    if rng.random() < 0.3:
        _separate(image, page)
    if rng.random() < 0.5:  # the line that render writes at the bottom
        image[-round(6 * SCALE) :] = 255
    return image


def _font(rng: random.Random, height_mm: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    size = max(6.0, height_mm * SCALE * 1.35)
    try:
        return ImageFont.truetype(rng.choice(_TYPEFACES), round(size))
    except OSError:
        return ImageFont.load_default(size)


def _label(pen: ImageDraw.ImageDraw, page: Page, rng: random.Random) -> None:
    font = _font(rng, rng.uniform(2.0, 4.0))
    dx, dy = rng.uniform(-7, 4), rng.choice((-9.0, -6.5, -4.0, -1.5, 2.5, 5.0)) + rng.uniform(-1, 1)
    mark = rng.random() < 0.15
    for strip in page.strips:
        text = strip.lead.upper() if mark else strip.lead
        pen.text((strip.x + dx * SCALE, strip.y + dy * SCALE), text, fill=0, font=font, anchor="lm")


def _write_header(pen: ImageDraw.ImageDraw, height: float, width: float, rng: random.Random) -> None:
    font = _font(rng, rng.uniform(1.8, 2.8))
    for column in range(rng.randint(1, 4)):
        x = rng.uniform(2, 30) + column * width / 4
        for line in range(rng.randint(1, int(height / 5))):
            number = str(rng.randint(10, 480)) if rng.random() < 0.5 else ""
            pen.text(
                (x * SCALE, (2 + 4.2 * line) * SCALE), f"{rng.choice(_WORDS)} {number}", fill=0, font=font
            )


def _separate(image: Image8, page: Page) -> None:
    """Dotted lines where the lead changes."""
    for x in {round(strip.x) for strip in page.strips}:
        if 0 <= x < image.shape[1]:
            image[: round(0.8 * image.shape[0]) : 4, max(0, x - 1) : x + 1] = 40


def spoil(page: Image8, rng: np.random.Generator, side_mm: float) -> Image8:
    """Cut a square out of a page and make it look like a flattened photo.

    Returns:
        uint8 [n, n] at :data:`SCALE`, ``n = side_mm * SCALE``.
    """
    n = round(side_mm * SCALE)
    height, width = page.shape
    zoom = np.exp(rng.normal(0, 0.05, 2))
    angle = np.radians(rng.normal(0, 0.8))
    centre = [rng.uniform(min(0.5, n / 3 / s), max(0.5, 1 - n / 3 / s)) * s for s in (width, height)]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * zoom
    matrix = np.hstack([turn, (np.array([n / 2, n / 2]) - turn @ centre)[:, None]])
    outside = int(rng.choice((255, 255, 90, 160)))
    cut = cv2.warpAffine(page, matrix, (n, n), flags=cv2.INTER_AREA, borderValue=(outside,))
    dark = (255.0 - cut.astype(np.float32)) * rng.uniform(0.35, 1.0)
    if rng.random() < 0.3:
        dark = cv2.dilate(dark, np.ones((2, 2), np.uint8))
    grid = np.zeros((n, n), np.float32)
    start = rng.integers(0, 20, 2)
    for step, strength in ((4, rng.uniform(0, 1)), (20, rng.uniform(0, 1))):
        for axis in range(2):
            lines = np.arange(start[axis] % step, n, step)
            grid[(lines, slice(None)) if axis else (slice(None), lines)] += strength
    dark += cv2.GaussianBlur(grid, (0, 0), rng.uniform(0.5, 1.2)) * rng.choice((0.0, 20.0, 45.0, 80.0))
    for _ in range(rng.poisson(0.7)):  # shadows' edges, strokes of a pen, dirt
        a, b = rng.uniform(0, n, 2), rng.normal(0, n / 4, 2)
        ends = [tuple(int(v) for v in p) for p in (a, a + b)]
        cv2.line(dark, ends[0], ends[1], float(rng.uniform(20, 200)), int(rng.integers(1, 6)), cv2.LINE_AA)
    if rng.random() < 0.3:
        x = int(rng.integers(0, n))
        dark[:, : x if rng.random() < 0.5 else 1] += rng.uniform(10, 60)
    blur = rng.uniform(0, 1.8) if rng.random() < 0.7 else 0.0
    if blur > 0.3:
        dark = cv2.GaussianBlur(dark, (0, 0), blur)
    dark += rng.normal(0, rng.choice((0.0, 5.0, 15.0, 35.0)), (n, n)).astype(np.float32)
    return np.asarray((250 - dark).clip(0, 255), np.uint8)


__all__ = ["LEADS", "SCALE", "draw_page", "spoil"]
