"""Pictures with known defects for the benchmarks of the capture path, and pictures that are no ECG.

Pages are drawn from the packaged sample records, photographed with everything moderate and one thing wrong.
Nothing is downloaded. Pictures of the world come from packages that happen to be installed: scikit-learn's
two (always there) and scikit-image's samples.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.paper import GRID_COLOURS, Page, PaperStyle, blank, render
from pulse_edge.ecg.photo import Photo, PhotoStyle, Wave, draw_photo_style, photograph
from pulse_edge.ecg.record import read_record

SAMPLES = Path(__file__).parents[1] / "pulse_edge" / "assets" / "samples"
SIZE = (1600, 1236)
LAYOUTS = ("3x4+1", "3x4+1", "3x4", "6x2", "6x2+1", "12x1")

Picture = NDArray[np.uint8]
# A defect changes the style of the photo; it gets the chance to draw how bad it is.
Defect = Callable[[random.Random, PhotoStyle], PhotoStyle]


@dataclass(frozen=True)
class Shot:
    """A photographed page and its truth.

    Attributes:
        photo: with its exact map.
        page: with the place of every strip.
        paper: how the page looks.
        style: how it was photographed.
    """

    photo: Photo
    page: Page
    paper: PaperStyle
    style: PhotoStyle


def moderate(rng: random.Random) -> PhotoStyle:
    """Draw a photo of a whole page with nothing wrong: bent paper, uneven light, a little noise."""
    style = draw_photo_style(rng, 0.7)
    return replace(
        style,
        rotation_deg=max(-6.0, min(6.0, style.rotation_deg)),
        cover=0.0,
        zoom=rng.uniform(0.88, 0.97),
        notes=0,
        gradient=min(style.gradient, 0.15),
        shadow=0.0,
        glare=0.0,
        exposure=rng.uniform(0.85, 1.05),
        defocus_mm=rng.uniform(0, 0.15),
        motion_mm=0.0,
        noise=min(style.noise, 0.015),
        moire=0.0,
        jpeg=rng.randint(70, 95),
    )


def blurred(rng: random.Random, style: PhotoStyle) -> PhotoStyle:
    """Out of focus by 0.45 to 0.9 mm, or moved by 0.8 to 1.6 mm."""
    if rng.random() < 0.5:
        return replace(style, defocus_mm=rng.uniform(0.45, 0.9))
    return replace(style, motion_mm=rng.uniform(0.8, 1.6), motion_deg=rng.uniform(-90, 90))


def shadowed(rng: random.Random, style: PhotoStyle) -> PhotoStyle:
    """A shadow that takes 45 to 70 % of the light."""
    kind, soft = rng.choice(("edge", "hand")), rng.uniform(0.01, 0.1)
    return replace(style, shadow=rng.uniform(0.45, 0.7), shadow_kind=kind, shadow_soft=soft)


def glaring(rng: random.Random, style: PhotoStyle) -> PhotoStyle:
    """A highlight in which print is lost."""
    return replace(style, glare=rng.uniform(1.2, 1.8), glare_size=rng.uniform(0.07, 0.14))


def cropped(rng: random.Random, style: PhotoStyle) -> PhotoStyle:
    """Too near, or beside the page."""
    if rng.random() < 0.5:
        return replace(style, zoom=rng.uniform(1.18, 1.5))
    x, y = rng.choice(((0.18, 0.0), (-0.18, 0.0), (0.0, 0.22), (0.0, -0.22)))
    return replace(style, zoom=rng.uniform(0.95, 1.05), shift=(x, y))


def crumpled(rng: random.Random, style: PhotoStyle) -> PhotoStyle:
    """As bent as the camera's model allows."""
    waves = tuple(
        Wave(rng.uniform(3.0, 4.5), rng.uniform(200, 300), rng.uniform(-90, 90), rng.uniform(-180, 180))
        for _ in range(2)
    )
    return replace(style, waves=waves, tilt_deg=rng.uniform(10, 25))


DEFECTS: dict[str, Defect] = {
    "blur": blurred,
    "shadow": shadowed,
    "glare": glaring,
    "cut": cropped,
    "bent": crumpled,
}


def shoot(seed: int, defect: Defect | None = None, size: tuple[int, int] = SIZE, **paper: Any) -> Shot:
    """Photograph a page; with the same seed every defect befalls the same page in the same photo.

    Args:
        seed: chooses record, layout, grid and the rest.
        defect: a value of ``DEFECTS``, or None.
        size: of the photo.
        **paper: fields of the page's style that are not drawn.
    """
    rng = random.Random(seed)
    style = moderate(rng)
    look = PaperStyle(
        layout=rng.choice(LAYOUTS),
        grid=rng.choice(list(GRID_COLOURS)),
        trace_mm=rng.choice((0.25, 0.3, 0.4)),
        dpi=200.0,
        header=("Name 0000", "12-Nov-2026 08:15") if rng.random() < 0.5 else (),
    )
    look = replace(look, **paper)
    if defect is not None:
        style = defect(random.Random(seed + 1), style)
    records = sorted(SAMPLES.glob("*.hea"))
    page = render(read_record(records[seed % len(records)]), look)
    return Shot(photograph(page.image, page.px_per_mm, style, size), page, look, style)


def lead_boxes(shot: Shot) -> list[tuple[str, float, float, float, float]]:
    """List where the page's leads stand: name, then left, top, right, bottom in page millimetres."""
    scale = shot.page.px_per_mm
    heights = sorted({strip.y for strip in shot.page.strips})
    half = min(np.diff(heights), default=80 * scale) / 2
    speed = shot.page.px_per_s
    return [
        (
            strip.lead,
            (strip.x + 0.5) / scale,
            (strip.y - half + 0.5) / scale,
            (strip.x + strip.duration_s * speed + 0.5) / scale,
            (strip.y + half + 0.5) / scale,
        )
        for strip in shot.page.strips
    ]


def lost_mm(shot: Shot) -> dict[str, float]:
    """How many millimetres of each strip's line lie outside of the photo, by ``lead@index``."""
    width, height = shot.photo.image.shape[1], shot.photo.image.shape[0]
    lost = {}
    for index, (lead, x0, top, x1, bottom) in enumerate(lead_boxes(shot)):
        x = np.linspace(x0, x1, 200)
        at = shot.photo.to_photo(x, np.full(200, (top + bottom) / 2))
        out = (at[:, 0] < 0) | (at[:, 1] < 0) | (at[:, 0] > width - 1) | (at[:, 1] > height - 1)
        lost[f"{lead}@{index}"] = float(out.mean() * (x1 - x0))
    return lost


# --- no ECG -------------------------------------------------------------------------------------


def not_ecgs(count: int, size: tuple[int, int] = (1200, 927)) -> Iterator[tuple[str, Picture]]:
    """Yield named pictures that are no ECG: drawn ones, ``count`` of each kind, then those at hand."""
    for kind, draw in _DRAWN.items():
        for k in range(count):
            rng = np.random.default_rng(1000 * list(_DRAWN).index(kind) + k)
            page = draw(rng)
            if page.shape[0] < 1000:  # a picture as it is
                yield f"{kind} {k}", page
                continue
            style = moderate(random.Random(k))
            yield f"{kind} {k}", photograph(page, 8.0, style, size).image
    for path in pictures_at_hand():
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if picture is not None and min(picture.shape[:2]) >= 100:
            yield path.name, np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def pictures_at_hand() -> list[Path]:
    """Return the sample pictures of installed packages."""
    found: list[Path] = []
    for package, folder in (("sklearn", "datasets/images"), ("skimage", "data")):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            inside = Path(spec.origin).parent / folder
            found += sorted(p for p in inside.glob("*") if p.suffix in (".png", ".jpg"))
    return found


def _paper() -> Picture:
    return np.full((1727, 2235, 3), 252, np.uint8)  # US letter at 8 px/mm


def _graph_paper(rng: np.random.Generator) -> Picture:
    """The very grid of an ECG, without one."""
    colour = str(rng.choice(list(GRID_COLOURS)))
    page = blank(PaperStyle(grid=colour, dpi=8.0 * 25.4))
    return np.asarray(page, np.uint8)


def _text(rng: np.random.Generator) -> Picture:
    page = _paper()
    letters = list("abcdefghijklmnopqrstuvwxyz      ")
    size = float(rng.uniform(0.8, 1.6))
    for y in range(150, 1600, int(45 * size)):
        line = "".join(rng.choice(letters, int(rng.uniform(40, 75) / size)))
        cv2.putText(page, line, (150, y), cv2.FONT_HERSHEY_SIMPLEX, size, (20, 20, 30), 2, cv2.LINE_AA)
    return page


def _table(rng: np.random.Generator) -> Picture:
    page = _paper()
    across, down = int(rng.integers(120, 400)), int(rng.integers(60, 120))
    page[150:1600:down, 150:2100] = 40
    page[150:1600, 150:2100:across] = 40
    for y in range(150 + down - 15, 1600, down):
        for x in range(160, 2000, across):
            number = f"{rng.uniform(0, 500):.1f}"
            cv2.putText(page, number, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (20, 20, 30), 2, cv2.LINE_AA)
    return page


def _music(rng: np.random.Generator) -> Picture:
    page = _paper()
    for top in range(180, 1500, 190):
        for k in range(5):
            page[top + 16 * k : top + 16 * k + 2, 120:2120] = 30
        for x in range(240, 2080, int(rng.integers(50, 90))):
            y = top + 8 * int(rng.integers(0, 9))
            cv2.ellipse(page, (x, y), (11, 8), -20, 0, 360, (15, 15, 15), -1, cv2.LINE_AA)
            cv2.line(page, (x + 10, y), (x + 10, y - 60), (15, 15, 15), 3, cv2.LINE_AA)
    return page


def _checkerboard(rng: np.random.Generator) -> Picture:
    side = int(rng.integers(12, 80))
    y, x = np.mgrid[:1727, :2235]
    grey = np.where((x // side + y // side) % 2, 245, 15).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _plain(rng: np.random.Generator) -> Picture:
    page = _paper()
    page[:] = rng.integers(60, 255, 3).astype(np.uint8)
    return page


def _cloth(rng: np.random.Generator) -> Picture:
    """A woven pattern: a lattice, but not one of fives."""
    pitch = float(rng.uniform(5, 30))
    y, x = np.mgrid[:1727, :2235]
    wave = np.sin(2 * np.pi * x / pitch) * np.sin(2 * np.pi * y / pitch)
    colour = rng.integers(60, 200, 3)
    return np.clip(colour + 45 * wave[..., None], 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator) -> Picture:
    """Uneven at every scale, as stone and leaves are."""
    total = np.zeros((700, 900, 3), np.float32)
    for octave in range(7):
        small = rng.standard_normal((7 * 2**octave, 9 * 2**octave, 3), dtype=np.float32)
        total += cv2.resize(small, (900, 700), interpolation=cv2.INTER_CUBIC) / 1.6**octave
    return np.clip(128 + 45 * total, 0, 255).astype(np.uint8)


def _screen(rng: np.random.Generator) -> Picture:
    """Windows of flat colour with text, as on a screen."""
    page = np.full((700, 1000, 3), 235, np.uint8)
    for _ in range(9):
        x, y = int(rng.integers(0, 800)), int(rng.integers(0, 550))
        w, h = int(rng.integers(80, 400)), int(rng.integers(40, 300))
        page[y : y + h, x : x + w] = rng.integers(0, 255, 3)
        cv2.putText(
            page, "Settings", (x, y + 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (10, 10, 10), 1, cv2.LINE_AA
        )
    return page


_DRAWN: dict[str, Callable[[np.random.Generator], Picture]] = {
    "graph paper": _graph_paper,
    "text": _text,
    "table": _table,
    "music": _music,
    "checkerboard": _checkerboard,
    "plain": _plain,
    "cloth": _cloth,
    "noise": _noise,
    "screen": _screen,
}
