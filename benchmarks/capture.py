"""How well photos of ECGs are flattened, against other ways to do it, and how fast.

    python benchmarks/capture.py ../shared/photos

1. Every annotated picture of the folder, by us and by the baselines of capture_baselines.py: root mean
   square error of the hand-checked 5 mm lattice in millimetres, its 95th percentile, the spacing (px/mm).
2. The same pictures changed by known maps (turned by 90, 180, 270 and up to 30 degrees, smaller, seen from
   the side) and spoiled (blur, JPEG, noise, grey, faint, shadow).
3. The same pictures turned by every quarter and by -30, 0 and 30 degrees more: which stand upright, and
   whether any is mirrored.
4. Synthesised photos with their exact map: close up, and whole sheets on tables.
5. A 12-megapixel JPEG from bytes to tiles, step by step, on one core: wall clock and processor time, the
   latter since it is nearer to what an otherwise idle core takes.

Prints tables and writes benchmarks/results/capture.json.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from capture_baselines import METHODS
from capture_truth import Error, against_lattice, against_photo, compare, read_photos, stands_upright
from machine import describe_machine
from numpy.typing import NDArray
from PIL import Image

import pulse_edge
from pulse_edge.ecg.paper import GRID_COLOURS, LAYOUTS, PaperStyle, render
from pulse_edge.ecg.photo import Photo, draw_photo_style, photograph
from pulse_edge.ecg.photo_style import BACKGROUNDS
from pulse_edge.ecg.record import read_record
from pulse_edge.image_io import open_image
from pulse_edge.runtimes.capture.rectify import Rectified, rectify
from pulse_edge.runtimes.capture.take import take_file

RESULT = Path(__file__).parent / "results" / "capture.json"
SAMPLES = Path(__file__).parents[1] / "pulse_edge" / "assets" / "samples"
Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]
Row = dict[str, Any]
LOST = Error(99.0, 99.0, 1.0, 0)
TABLE = (70, 60, 50)  # RGB around a picture that is turned


def main() -> None:
    """Measure everything, print the tables, write the file."""
    parser = argparse.ArgumentParser(description="Measure how photos of ECGs are flattened.")
    parser.add_argument("photos", type=Path, help="folder with annotations.json")
    parser.add_argument("--synthesised", type=int, default=60, help="photos of each kind")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument(
        "--only", nargs="+", help="parts to measure anew; the others stay as the file has them"
    )
    args = parser.parse_args()
    cv2.setNumThreads(1)
    photos = [(e, np.asarray(open_image(p, upright=True)), n) for e, p, n in read_photos(args.photos)]
    steps: dict[str, Callable[[], Row]] = {
        "photos": lambda: on_photos(photos),
        "twelve_megapixels": twelve_megapixels,
        "synthesised": lambda: synthesised(args.synthesised, False),
        "whole_sheets": lambda: synthesised(args.synthesised, True),
        "changed": lambda: changed(photos),
        "turned": lambda: turned(photos),
    }
    if not set(args.only or steps) <= set(steps):
        parser.error(f"--only takes {', '.join(steps)}")
    report: Row = (
        json.loads(args.output.read_text(encoding="utf-8")) if args.only and args.output.is_file() else {}
    )
    report |= {"benchmark": "capture", **describe_machine(), "opencv": cv2.__version__}
    for name in args.only or steps:
        report[name] = steps[name]()
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def on_photos(photos: list[tuple[Row, Picture, Floats]]) -> Row:
    """Ours and the baselines on pictures as they are."""
    rows: dict[str, list[Row]] = {"ours": [], **{name: [] for name in METHODS}}
    for entry, image, nodes in photos:
        start = time.process_time()
        found = rectify(image)
        seconds = time.process_time() - start
        error = against_lattice(found.mesh, nodes) or LOST
        spacing = [found.px_per_mm[k] / entry[f"px_per_mm_{'xy'[k]}"] - 1 for k in range(2)]
        rows["ours"].append(
            _row(entry, error, seconds)
            | {"spacing": max(spacing, key=abs), "upright": _upright(found, entry["grid_angle_deg"])}
            | {"orientation_sure": found.orientation_sure, "covered": error.nodes / len(nodes)}
        )
        for name, method in METHODS.items():
            start = time.process_time()
            error = _by_homography(method, image, nodes)
            rows[name].append(_row(entry, error, time.process_time() - start))
    out: Row = {}
    print(f"{'':22s}{'median':>8s}{'worst':>8s}{'<= 1 mm':>9s}{'p95':>7s}{'CPU s':>7s}")
    for name, all_rows in rows.items():
        for kind, some in (("all", all_rows), ("photos", [r for r in all_rows if r["kind"] == "photo"])):
            out[f"{name}, {kind}"] = summary = _summary(some)
            _print(f"{name}, {kind}", summary)
    spacing = np.abs([r["spacing"] for r in rows["ours"]])
    out["spacing"] = {"median": float(np.median(spacing)), "worst": float(spacing.max())}
    print(f"spacing error: median {100 * np.median(spacing):.2f} %, worst {100 * spacing.max():.2f} %")
    return out | {"rows": rows}


def _row(entry: Row, error: Error, seconds: float) -> Row:
    return {
        "file": entry["file"],
        "kind": entry["kind"],
        "rms_mm": round(error.rms_mm, 4),
        "p95_mm": round(error.p95_mm, 4),
        "cpu_s": round(seconds, 3),
    }


def _summary(rows: list[Row]) -> Row:
    rms = np.array([row["rms_mm"] for row in rows])
    return {
        "n": len(rows),
        "rms_mm_median": float(np.median(rms)),
        "rms_mm_worst": float(rms.max()),
        "within_1_mm": int((rms <= 1).sum()),
        "p95_mm_median": float(np.median([row["p95_mm"] for row in rows])),
        "p95_mm_worst": float(np.max([row["p95_mm"] for row in rows])),
        "cpu_s_median": float(np.median([row["cpu_s"] for row in rows])),
    }


def _print(name: str, s: Row) -> None:
    print(
        f"{name:26s}{s['rms_mm_median']:8.3f}{s['rms_mm_worst']:8.2f}{s['within_1_mm']:5d}/{s['n']:<3d}"
        f"{s['p95_mm_median']:7.3f}{s['cpu_s_median']:7.2f}",
        flush=True,
    )


def _by_homography(method: Callable[[Picture], Floats | None], image: Picture, nodes: Floats) -> Error:
    """A baseline's error; where it finds nothing, that of doing nothing."""
    found = method(image)
    matrix = np.eye(3) if found is None else found
    placed = cv2.perspectiveTransform(nodes[None, :, 2:], matrix)[0]
    return compare(np.asarray(placed, np.float64), 5.0 * nodes[:, :2]) or LOST


def _upright(found: Rectified, angle: float) -> bool:
    return abs((found.rotation - angle + 180) % 360 - 180) < 45


def changes(image: Picture, nodes: Floats) -> Iterator[tuple[str, Picture, Floats, float]]:
    """Yield changed pictures: name, picture, lattice, and by how many degrees it is turned."""
    height, width = image.shape[:2]
    rng = np.random.default_rng(0)

    def warp(matrix: Floats, size: tuple[int, int]) -> tuple[Picture, Floats]:
        moved = cv2.perspectiveTransform(nodes[None, :, 2:], matrix)[0]
        picture = cv2.warpPerspective(image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=TABLE)
        return np.asarray(picture, np.uint8), np.hstack([nodes[:, :2], moved])

    for degrees in (90, 180, 270, -30, -14, 17, 30):
        turn = np.vstack(
            [cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1), [0, 0, 1]]
        )
        cos, sin = abs(turn[0, 0]), abs(turn[0, 1])
        size = (round(width * cos + height * sin), round(width * sin + height * cos))
        turn[:2, 2] += (np.array(size) - (width, height)) / 2
        yield f"turned by {degrees}", *warp(turn, size), degrees
    small = cv2.resize(image, (round(0.75 * width), round(0.75 * height)), interpolation=cv2.INTER_AREA)
    ratio = np.array(small.shape[1::-1]) / (width, height)
    yield "0.75 of the size", small, np.hstack([nodes[:, :2], (nodes[:, 2:] + 0.5) * ratio - 0.5]), 0
    frame = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    seen = frame * 1.0
    seen[0] += (0.08 * width, 0.05 * height)
    seen[1] -= (0.05 * width, 0)
    seen[3] -= (0, 0.07 * height)
    from_side = cv2.getPerspectiveTransform(frame, seen.astype(np.float32))
    yield "seen from the side", *warp(np.asarray(from_side, np.float64), (width, height)), 0
    yield "blurred, sigma 1.2 px", np.asarray(cv2.GaussianBlur(image, (0, 0), 1.2), np.uint8), nodes, 0
    yield "JPEG quality 25", _jpeg(image, 25), nodes, 0
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    yield "grey", np.dstack([grey] * 3), nodes, 0
    spoiled = {
        "noise, 14 levels": image + rng.normal(0, 14, image.shape),
        "faint (45 %) and noise": 255 - (255.0 - image) * 0.45 + rng.normal(0, 3, image.shape),
        "shadow to a quarter": image * np.linspace(0.25, 1, width)[None, :, None],
    }
    for name, levels in spoiled.items():
        yield name, levels.clip(0, 255).astype(np.uint8), nodes, 0


def _jpeg(image: Picture, quality: int) -> Picture:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


def changed(photos: list[tuple[Row, Picture, Floats]]) -> Row:
    """Ours on changed pictures, and how often they are put upright."""
    rows: dict[str, list[Row]] = {}
    for entry, image, nodes in photos:
        for name, picture, moved, degrees in changes(image, nodes):
            start = time.process_time()
            found = rectify(picture)
            row = _row(entry, against_lattice(found.mesh, moved) or LOST, time.process_time() - start)
            row["upright"] = _upright(found, entry["grid_angle_deg"] + degrees)
            rows.setdefault(name, []).append(row)
    out: Row = {}
    for name, some in rows.items():
        out[name] = _summary(some) | {"upright": sum(row["upright"] for row in some)}
        _print(name, out[name])
    upright, n = (sum(row[key] for row in out.values()) for key in ("upright", "n"))
    print(f"upright: {upright} of {n} changed pictures")
    return {"by_change": out, "upright": upright, "n": n, "rows": rows}


def turned(photos: list[tuple[Row, Picture, Floats]]) -> Row:
    """How often ours is upright, and how often mirrored, whatever way a picture is held."""
    rows = []
    for entry, image, _ in photos:
        for quarter in range(4):
            for degrees in (0, -30, 30):
                found = rectify(_turn(image, 90 * quarter + degrees))
                upright = _upright(found, entry["grid_angle_deg"] + 90 * quarter + degrees)
                across, down = (np.diff(found.mesh[..., :2], axis=k).mean((0, 1)) for k in (1, 0))
                mirrored = bool(across[0] * down[1] < across[1] * down[0])
                row = {"file": entry["file"], "turned": 90 * quarter + degrees, "upright": upright}
                rows.append(row | {"mirrored": mirrored, "sure": round(found.orientation_sure, 3)})
    out: Row = {"n": len(rows), "quarters": 4 * len(photos)}
    out["upright"] = sum(row["upright"] for row in rows)
    out["upright_quarters"] = sum(row["upright"] for row in rows if row["turned"] % 90 == 0)
    out["mirrored"] = sum(row["mirrored"] for row in rows)
    out["wrong"] = [row for row in rows if not row["upright"]]
    print(f"turned: upright {out['upright_quarters']} of {out['quarters']} by quarters, {out['upright']} of "
          f"{out['n']} in all, mirrored {out['mirrored']}")  # fmt: skip
    return out


def _turn(image: Picture, degrees: int) -> Picture:
    """Turn a picture clockwise on a table; quarters exactly."""
    if degrees % 90 == 0:
        return np.ascontiguousarray(np.rot90(image, -degrees // 90))
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1)
    cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
    size = (round(width * cos + height * sin), round(width * sin + height * cos))
    matrix[:, 2] += (np.array(size) - (width, height)) / 2
    return np.asarray(
        cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=TABLE), np.uint8
    )


def shoot(seed: int, whole: bool, side: int = 2000) -> tuple[Photo, int]:
    """Synthesise one photo of a sample record and say by how many quarter turns it is turned."""
    rng = random.Random(seed)
    records = sorted(SAMPLES.glob("*.hea"))
    style = PaperStyle(
        layout=rng.choice(list(LAYOUTS)),
        grid=rng.choice(list(GRID_COLOURS)),
        header=("Name", "ID 123"),
        calibration=rng.random() < 0.7,
    )
    page = render(read_record(rng.choice(records)), style)
    shot = draw_photo_style(rng)
    if whole:
        zoom, degrees = rng.uniform(0.75, 1.0), rng.uniform(-30, 30)
        shot = replace(shot, cover=0.0, zoom=zoom, rotation_deg=degrees, background=rng.choice(BACKGROUNDS))
    turns = rng.randrange(4)
    size = (side, side * 3 // 4) if turns % 2 == 0 else (side * 3 // 4, side)
    return photograph(page.image, page.px_per_mm, replace(shot, quarter_turns=turns), size), turns


def synthesised(count: int, whole: bool) -> Row:
    """Ours on synthesised photos."""
    rows = []
    for seed in range(count):
        photo, turns = shoot(seed, whole)
        start = time.process_time()
        found = rectify(photo.image)
        seconds = time.process_time() - start
        name = {"file": f"seed {seed}", "kind": "synthesised"}
        row = _row(name, against_photo(found.mesh, photo) or LOST, seconds)
        row["upright"] = stands_upright(found.mesh, photo)
        row |= {"found": found.grid_found, "turns": turns, "orientation_sure": found.orientation_sure}
        rows.append(row)
    out = _summary(rows) | {"upright": sum(row["upright"] for row in rows), "rows": rows}
    _print("whole sheets on tables" if whole else "synthesised, close up", out)
    print(f"upright: {out['upright']} of {count}")
    return out


def twelve_megapixels(repeats: int = 5) -> Row:
    """Time a 4032 x 3024 JPEG from its file to tiles, as `pulse-edge capture` does it, the gate included."""
    page = render(read_record(sorted(SAMPLES.glob("*.hea"))[0]), PaperStyle(dpi=300))
    photo = photograph(page.image, page.px_per_mm, draw_photo_style(random.Random(3)), (4032, 3024))
    runs = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        Image.fromarray(photo.image).save(path, "JPEG", quality=90)
        size = path.stat().st_size
        for _ in range(repeats):
            start, cpu = time.perf_counter(), time.process_time()
            taken = take_file(path)
            judged = time.perf_counter()
            tiles = pulse_edge.preprocess(taken.found.page)
            steps = {**taken.timing_ms, "tiles": 1000 * (time.perf_counter() - judged)}
            steps["total"] = 1000 * (time.perf_counter() - start)
            cpu_s = time.process_time() - cpu
            runs.append((cpu_s, {k: round(v, 1) for k, v in steps.items()}))
    cpu_s, steps = min(runs, key=lambda run: run[0])
    mesh = taken.found.mesh.copy()
    mesh[..., :2] = (mesh[..., :2] + 0.5) * np.array(taken.scale) - 0.5
    error = against_photo(mesh, photo)
    print(f"12 MP JPEG of {size / 1e6:.1f} MB to tiles {list(tiles.shape)}: {1000 * cpu_s:.0f} ms CPU")
    for name, value in steps.items():
        print(f"  {name:22s}{value:8.1f} ms")
    return {
        "bytes": size,
        "tiles": list(tiles.shape),
        "cpu_ms": round(1000 * cpu_s, 1),
        "wall_ms": steps,
        "rms_mm": error.rms_mm if error else None,
        "repeats": repeats,
    }


if __name__ == "__main__":
    main()
