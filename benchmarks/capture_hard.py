"""How pictures fare that are harder than most: kinds that are rare among the annotated photos.

    python benchmarks/capture_hard.py ../shared/photos --count 20

Every kind is synthesised from the packaged sample records with its exact map, or from the annotated photos
with a known change; nothing is chosen by how it turns out. For each kind: the error of the mesh (as in
capture.py), how many stand upright, the grades, and silent failures (graded good or usable, yet off by more
than 1 mm, by 2 % in spacing, or not upright).

Writes benchmarks/results/capture_hard.json; ``--rows``, ``--minutes`` and ``--seed`` as capture_gate.py.
"""

from __future__ import annotations

import io
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from capture_gate import SILENT_MM, SILENT_SCALE, collect, examine, options
from capture_sets import LAYOUTS, SAMPLES, moderate
from capture_truth import Error, against_lattice, against_photo, read_photos, stands_upright
from machine import describe_machine
from numpy.typing import NDArray
from PIL import Image

from pulse_edge.ecg.paper import GRID_COLOURS, Page, PaperStyle, render
from pulse_edge.ecg.photo import Fold, Photo, Wave, draw_photo_style, photograph
from pulse_edge.ecg.record import read_record
from pulse_edge.image_io import open_image

RESULT = Path(__file__).parent / "results" / "capture_hard.json"
Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]
Row = dict[str, Any]
SIDES = (1000, 1300, 1700)  # pixels of the long side


def draw_page(rng: random.Random, grid: str | None = "any", dpi: float = 200.0) -> Page:
    """A page of any record, layout, colour and weight of line."""
    style = PaperStyle(
        layout=rng.choice(LAYOUTS),
        grid=rng.choice(list(GRID_COLOURS)) if grid == "any" else grid,
        trace_mm=rng.choice((0.25, 0.3, 0.4)),
        dpi=dpi,
        header=("Name 0000", "12-Nov-2026 08:15") if rng.random() < 0.5 else (),
        calibration=rng.random() < 0.7,
    )
    return render(read_record(rng.choice(sorted(SAMPLES.glob("*.hea")))), style)


def ruled(page: Page, minor: float, major: float, width_mm: float = 0.2, dots: str = "") -> Picture:
    """A blank page ruled anew: darkness of lines every 1 and 5 mm, or dots where those cross.

    Args:
        page: without a grid.
        minor: grey levels that the lines of 1 mm are darker than paper.
        major: likewise of 5 mm.
        width_mm: of lines and dots.
        dots: ``minor``: 1 mm lines are dots at their crossings; ``all``: those of 5 mm too (drawn twice as
            wide); ``five``: dots every millimetre along lines of 5 mm, and nothing between.
    """
    height, width = page.image.shape[:2]
    mm = [(np.arange(n) + 0.5) / page.px_per_mm for n in (width, height)]

    def lines(step: float, wide: float) -> tuple[Floats, Floats]:
        """How much of each column and row of pixels a line covers, 0 to 1."""
        away = [np.abs((at + step / 2) % step - step / 2) for at in mm]
        x, y = (np.clip((wide / 2 - a) * page.px_per_mm + 0.5, 0, 1) for a in away)
        return x[None, :], y[:, None]

    (x1, y1), (x5, y5) = lines(1, width_mm), lines(5, width_mm)
    if dots == "minor":
        marks = np.maximum(minor * x1 * y1, major * np.maximum(x5, y5))
    elif dots == "all":
        (x1, y1), (x5, y5) = lines(1, 1.5 * width_mm), lines(5, 2.5 * width_mm)
        marks = np.maximum(minor * x1 * y1, major * x5 * y5)
    elif dots == "five":
        (x1, y1), (x5, y5) = lines(1, 1.5 * width_mm), lines(5, 1.5 * width_mm)
        marks = major * np.maximum(x5 * y1, x1 * y5)
    else:
        marks = np.maximum(minor * np.maximum(x1, y1), major * np.maximum(x5, y5))
    return np.minimum(page.image, np.round(255 - marks)[..., None]).astype(np.uint8)


def as_photo(rng: random.Random, picture: Picture, px_per_mm: float, **changes: Any) -> Photo:
    """Photograph a page as people do, 1 to 1.5 of severity, with changes to the style."""
    style = replace(draw_photo_style(rng, rng.uniform(0.8, 1.5)), quarter_turns=rng.randrange(4))
    style = replace(style, **changes)
    side = rng.choice(SIDES)
    size = (side, round(side * 0.75))
    return photograph(picture, px_per_mm, style, size[:: 1 - style.quarter_turns % 2 * 2])


def grey(photo: Photo) -> Photo:
    """The photo without colour."""
    level = cv2.cvtColor(photo.image, cv2.COLOR_RGB2GRAY)
    return replace(photo, image=np.asarray(np.dstack([level] * 3), np.uint8))


def black_and_white(rng: random.Random) -> Photo:
    """A page printed by a laser printer: grey lines, photographed and stored without colour."""
    page = draw_page(rng, None)
    major = rng.uniform(60, 190)
    picture = ruled(page, major * rng.uniform(0.3, 0.9), major, rng.uniform(0.12, 0.25))
    return grey(as_photo(rng, picture, page.px_per_mm))


def two_levels(rng: random.Random) -> Photo:
    """A fax or a copy: every pixel black or white, by its surroundings."""
    page = draw_page(rng, None)
    picture = ruled(page, rng.uniform(40, 110), rng.uniform(110, 190), rng.uniform(0.15, 0.25))
    flat = replace(moderate(rng), zoom=1.0, cover=rng.uniform(0.5, 0.95), jpeg=None)
    photo = grey(photograph(picture, page.px_per_mm, flat, (rng.choice(SIDES[1:]),) * 2))
    level = cv2.adaptiveThreshold(
        photo.image[..., 0], 255, cv2.ADAPTIVE_THRESH_GAUSSIAN_C, cv2.THRESH_BINARY, 31, rng.uniform(4, 10)
    )
    return replace(photo, image=np.asarray(np.dstack([level] * 3), np.uint8))


def faint(rng: random.Random) -> Photo:
    """Lines of 4 to 14 grey levels on thermal paper."""
    page = draw_page(rng, None)
    major = rng.uniform(8, 28)
    return as_photo(rng, ruled(page, major * rng.uniform(0.4, 0.7), major), page.px_per_mm)


def dotted(rng: random.Random) -> Photo:
    """Dots where lines cross."""
    page = draw_page(rng, None)
    picture = ruled(
        page, rng.uniform(80, 180), rng.uniform(80, 180), 0.25, rng.choice(("minor", "all", "five"))
    )
    return as_photo(rng, picture, page.px_per_mm)


def five_only(rng: random.Random) -> Photo:
    """Lines of 5 mm alone."""
    page = draw_page(rng, None)
    return as_photo(rng, ruled(page, 0, rng.uniform(40, 120)), page.px_per_mm)


def one_only(rng: random.Random) -> Photo:
    """Lines of 1 mm, all alike."""
    page = draw_page(rng, None)
    return as_photo(rng, ruled(page, rng.uniform(40, 120), 0), page.px_per_mm, tilt_deg=rng.uniform(0, 10))


def curled(rng: random.Random) -> Photo:
    """As bent as the camera's model allows, out of a roll or a pocket."""
    page = draw_page(rng)
    waves = [Wave(rng.uniform(9, 13), rng.uniform(420, 560), rng.uniform(-90, 90), rng.uniform(-180, 180))]
    if rng.random() < 0.5:
        waves.append(Wave(rng.uniform(1.5, 3), rng.uniform(140, 220), rng.uniform(-90, 90), 0.0))
    folds = (
        () if len(waves) > 1 else (Fold(rng.choice((-5, 5)), rng.choice((0.0, 90.0)), rng.uniform(-60, 60)),)
    )
    return as_photo(
        rng, page.image, page.px_per_mm, waves=_within(waves), folds=folds, tilt_deg=rng.uniform(10, 28)
    )


def _within(waves: list[Wave]) -> tuple[Wave, ...]:
    """Flatten waves to what the camera's model takes, a fold beside."""
    slope = sum(2 * np.pi * wave.height_mm / wave.length_mm for wave in waves)
    return tuple(replace(wave, height_mm=wave.height_mm * min(1.0, 0.2 / slope)) for wave in waves)


def screen(rng: random.Random) -> Photo:
    """A monitor: each pixel is three strips of colour, which beat with the camera's."""
    page = draw_page(rng, dpi=rng.uniform(80, 110))
    large = np.kron(page.image, np.ones((3, 3, 1), np.uint8))
    mask = np.full((3, 3, 3), 30, np.float32)
    for channel in range(3):
        mask[:2, channel, channel] = 255  # a dark gap between rows
    tiled = np.tile(mask, (*page.image.shape[:2], 1)) / 255
    lit = np.clip(large * tiled * 1.9, 0, 255).astype(np.uint8)
    flat = {
        "waves": (),
        "folds": (),
        "notes": 0,
        "raking": 0.0,
        "moire": rng.choice((0.0, rng.uniform(0.1, 0.35))),
    }
    return as_photo(rng, lit, 3 * page.px_per_mm, exposure=1.0, shadow=0.0, **flat)


def partial_sheet(rng: random.Random) -> Photo:
    """A part of the page, from near by."""
    page = draw_page(rng)
    shift = (rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4))
    return as_photo(rng, page.image, page.px_per_mm, cover=1.0, zoom=rng.uniform(1.4, 2.0), shift=shift)


def dark(rng: random.Random) -> Photo:
    """A room at night: a fifth of the light and the noise that goes with it."""
    page = draw_page(rng)
    changes = {
        "exposure": rng.uniform(0.3, 0.5),
        "noise": rng.uniform(0.02, 0.06),
        "vignette": rng.uniform(0.2, 0.6),
    }
    return as_photo(rng, page.image, page.px_per_mm, shadow=rng.uniform(0, 0.6), **changes)


def shaded(rng: random.Random) -> Photo:
    """A hand's shadow and a lamp's highlight at once."""
    page = draw_page(rng)
    changes = {
        "shadow": rng.uniform(0.5, 0.8),
        "shadow_kind": "hand",
        "shadow_soft": rng.uniform(0.005, 0.05),
    }
    return as_photo(
        rng,
        page.image,
        page.px_per_mm,
        glare=rng.uniform(1.0, 1.8),
        glare_size=rng.uniform(0.08, 0.2),
        **changes,
    )


def slanted(rng: random.Random) -> Photo:
    """From far aside and near by, turned by up to 30 degrees."""
    page = draw_page(rng)
    changes = {
        "tilt_deg": rng.uniform(22, 30),
        "distance": rng.uniform(0.9, 1.1),
        "rotation_deg": rng.uniform(-30, 30),
    }
    return as_photo(rng, page.image, page.px_per_mm, cover=rng.uniform(0, 0.6), zoom=1.0, **changes)


def small(rng: random.Random) -> Photo:
    """Sent by a messenger: 640 to 900 pixels, and encoded hard."""
    page = draw_page(rng)
    style = replace(draw_photo_style(rng, 1.0), jpeg=rng.randint(20, 50), quarter_turns=0)
    side = rng.randint(760, 1000)
    return photograph(page.image, page.px_per_mm, style, (side, round(side * 0.75)))


def two_sheets(rng: random.Random) -> Photo:
    """A second page lies across the first; the truth is the first's."""
    page, other = draw_page(rng), draw_page(rng)
    picture = page.image.copy()
    height, width = picture.shape[:2]
    angle = rng.choice((0, 90, 180, 270)) + rng.uniform(-20, 20)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
    away = rng.uniform(0.5, 0.75) * np.array(rng.choice(((1, 0), (0, 1), (-1, 0), (0, -1))))
    matrix[:, 2] += away * (width, height)  # so that the first page keeps more than half of the picture
    over = cv2.warpAffine(other.image, matrix, (width, height))
    mask = cv2.warpAffine(
        np.ones((height, width), np.uint8), matrix, (width, height), flags=cv2.INTER_NEAREST
    )
    picture[mask > 0] = over[mask > 0]
    return as_photo(rng, picture, page.px_per_mm)


PHOTOS: dict[str, Callable[[random.Random], Photo]] = {
    "black and white": black_and_white,
    "two levels": two_levels,
    "faint": faint,
    "dotted": dotted,
    "5 mm only": five_only,
    "1 mm only": one_only,
    "curled": curled,
    "screen": screen,
    "part of a sheet": partial_sheet,
    "dark": dark,
    "shadow and glare": shaded,
    "slanted": slanted,
    "small": small,
    "two sheets": two_sheets,
}


def photo_row(kind: str, seed: int) -> list[Row]:
    """Examine one synthesised photo."""
    photo = PHOTOS[kind](random.Random(seed))
    row, mesh = examine(photo.image, kind, f"{kind} {seed}")
    return [_scored(row, against_photo(mesh, photo), stands_upright(mesh, photo))]


def _scored(row: Row, error: Error | None, upright: bool) -> Row:
    off = error is None or error.rms_mm > SILENT_MM or abs(error.scale - 1) > SILENT_SCALE
    figures = {"rms_mm": 99.0, "p95_mm": 99.0, "scale": 1.0}
    if error is not None:
        figures = {"rms_mm": error.rms_mm, "p95_mm": error.p95_mm, "scale": error.scale}
    return {**row, **figures, "stands": upright, "off": bool(off)}


# --- annotated photos, changed --------------------------------------------------------------------


def spoil(image: Picture, nodes: Floats, rng: random.Random) -> tuple[Picture, Floats, float]:
    """Turn, slant, cut, reduce, darken and encode a real picture; its lattice, and by how many degrees."""
    height, width = image.shape[:2]
    degrees = rng.choice((0, 90, 180, 270)) + rng.uniform(-30, 30) * rng.choice((0, 0, 1))
    turn = np.vstack(
        [cv2.getRotationMatrix2D((width / 2, height / 2), -degrees, rng.uniform(0.75, 1.0)), [0, 0, 1]]
    )
    cos, sin = abs(turn[0, 0]), abs(turn[0, 1])
    size = (round(width * cos + height * sin), round(width * sin + height * cos))
    turn[:2, 2] += (np.array(size) - (width, height)) / 2
    slant = np.eye(3)
    slant[2, :2] = [rng.uniform(-0.2, 0.2) / side for side in size]
    slant = slant / (slant[2] @ [size[0] / 2, size[1] / 2, 1])
    slant[:2, 2] = np.array(size) / 2 - (slant @ [size[0] / 2, size[1] / 2, 1])[:2] + slant[:2, 2]
    matrix = slant @ turn
    corner = [rng.uniform(0, 0.25) * side for side in size]
    matrix = np.array([[1, 0, -corner[0]], [0, 1, -corner[1]], [0, 0, 1]]) @ matrix
    part = (round(size[0] * rng.uniform(0.6, 0.75)), round(size[1] * rng.uniform(0.6, 0.75)))
    table = tuple(rng.randint(20, 230) for _ in range(3))
    picture = cv2.warpPerspective(image, matrix, part, flags=cv2.INTER_AREA, borderValue=table).astype(
        np.float32
    )
    if rng.random() < 0.3:
        picture[:] = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]
    light = np.linspace(rng.uniform(0.3, 1), rng.uniform(0.3, 1), part[0])[None, :, None]
    picture = picture * light + np.random.default_rng(rng.getrandbits(32)).normal(
        0, rng.uniform(0, 8), picture.shape
    )
    stream = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=rng.randint(30, 90))
    placed = cv2.perspectiveTransform(nodes[None, :, 2:], matrix)[0]
    seen = np.all((placed > 0) & (placed < np.array(part) - 1), axis=1)
    return np.asarray(Image.open(stream)), np.hstack([nodes[:, :2], placed])[seen], float(degrees)


def real_row(entry: Row, path: Path, nodes: Floats, seed: int) -> list[Row]:
    """Examine one annotated picture, spoiled."""
    image = np.asarray(open_image(path, upright=True))
    picture, lattice, degrees = spoil(image, nodes, random.Random(f"{seed} {entry['file']}"))
    row, mesh = examine(picture, f"real {entry['kind']}, spoiled", f"{entry['file']} {seed}")
    turned = (row["rotation"] - entry["grid_angle_deg"] - degrees + 180) % 360 - 180
    error = against_lattice(mesh, lattice)
    covered = 0.0 if error is None else error.nodes / max(1, len(lattice))
    return [_scored(row, error, abs(turned) < 60) | {"covered": covered}]


def jobs(photos: Path | None, count: int, first: int) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """Name every part of the work: the key and what examines it."""
    known = read_photos(photos) if photos is not None else []
    for seed in range(first, first + count):
        for kind in PHOTOS:
            yield f"{kind} {seed}", partial(photo_row, kind, seed)
        if (seed - first) % 3 == 0:
            for entry, path, lattice in known:
                yield f"{entry['file']} {seed}", partial(real_row, entry, path, lattice, seed)


def report(rows: list[Row], about: Row, output: Path) -> None:
    """Print and write the table of kinds."""
    table: Row = {}
    heads = ("n", "median", "<= 1 mm", "upright", "good", "usable", "refuse", "silent")
    print(f"{'kind':24s}" + "".join(f"{head:>8}" for head in heads))
    for kind in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == kind]
        rms = np.array([row["rms_mm"] for row in own])
        silent = [row for row in own if row["grade"] != "refuse" and (row["off"] or not row["stands"])]
        table[kind] = entry = {
            "n": len(own),
            "rms_mm_median": round(float(np.median(rms)), 4),
            "within_1_mm": int((rms <= 1).sum()),
            "upright": sum(row["stands"] for row in own),
            **{grade: sum(row["grade"] == grade for row in own) for grade in ("good", "usable", "refuse")},
            "silent": len(silent),
            "silent_names": [row["name"] for row in silent],
        }
        print(f"{kind:24s}" + "".join(f"{entry[k]:>8}" for k in list(entry)[:-1]))
    output.parent.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": "capture_hard", **about, "kinds": table}
    output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print the table, write the file."""
    args = options("How hard kinds of pictures are flattened and graded.", 20, RESULT)
    cv2.setNumThreads(1)
    about = describe_machine()
    work = jobs(args.photos, args.count, 100_000 * args.seed)
    rows = collect(work, args.rows, time.monotonic() + 60 * args.minutes)
    report(rows, {**about, "seed": args.seed, "count": args.count}, args.output)


if __name__ == "__main__":
    main()
