"""How many training pages one core makes in a second: rendered, and rendered and photographed.

    python benchmarks/pages.py

Takes the packaged sample records, one page style and one photo style after another as training draws them,
and times each page with one OpenCV thread. Prints a table and writes benchmarks/results/pages.json. The
target is 15 photos a second at a long side of 672 pixels; it depends on the machine and on what else runs
there, which is why the load stands beside the figures.

The pages are of 100 dpi for photos of 672 pixels and of 200 dpi for those of 2200.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
from machine import describe_machine

from pulse_edge.ecg.paper import Page, PaperStyle, render
from pulse_edge.ecg.photo import draw_photo_style, photograph
from pulse_edge.ecg.record import read_record

RESULT = Path(__file__).parent / "results" / "pages.json"
SAMPLES = Path(__file__).parents[1] / "pulse_edge" / "assets" / "samples"
TARGET_PER_S = 15.0
# Long side of the photo, its size (US letter) and the resolution of the page.
SIZES = {672: ((672, 519), 100.0), 2200: ((2200, 1700), 200.0)}
# The peer: ecg-image-kit makes pages from the same kind of record. No speed of it was found: not in its
# generator's README, nor in its paper's abstract, nor in its issues. (The paper's full text was not at
# hand.) A user timed 293 augmented images in pull request 16; the copy that could be read ends just before
# the figures, so none is repeated here.
PEER: dict[str, Any] = {
    "name": "ecg-image-kit",
    "pages_per_s": None,
    "why": "no published speed found; a user timed it in pull request 16, whose figures could not be read",
    "searched": [
        "https://github.com/alphanumericslab/ecg-image-kit/blob/main/codes/ecg-image-generator/README.md",
        "https://arxiv.org/abs/2307.01946",
        "https://github.com/alphanumericslab/ecg-image-kit/pull/16",
    ],
}


def times_ms(work: Callable[[int], object], pages: int) -> list[float]:
    """Milliseconds of ``work(0)``, ``work(1)``, … after one call of each of the first three to warm up."""
    for k in range(3):
        work(k)
    elapsed = []
    for k in range(pages):
        begin = time.perf_counter()
        work(k)
        elapsed.append(1000.0 * (time.perf_counter() - begin))
    return elapsed


def measure(long_side: int, pages: int) -> dict[str, dict[str, float]]:
    """Time pages of one size, rendered alone and rendered and photographed."""
    size, dpi = SIZES[long_side]
    records = [read_record(path) for path in sorted(SAMPLES.glob("*.hea"))]
    styles = [draw_photo_style(random.Random(k)) for k in range(pages)]

    def rendered(k: int) -> Page:
        return render(records[k % len(records)], PaperStyle(dpi=dpi))

    def photographed(k: int) -> object:
        page = rendered(k)
        return photograph(page.image, page.px_per_mm, styles[k % pages], size).image

    rows = {}
    for name, work in (("render", rendered), ("render + photograph", photographed)):
        elapsed = times_ms(work, pages)
        rows[name] = {
            "pages_per_s": round(1000.0 * len(elapsed) / sum(elapsed), 1),
            "median_ms": round(statistics.median(elapsed), 1),
            "max_ms": round(max(elapsed), 1),
        }
    return rows


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Time pages rendered and photographed on one core.")
    parser.add_argument("--pages", type=int, default=200, help="pages of 672 px; a fifth as many of 2200 px")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the figures are written")
    args = parser.parse_args()
    if args.pages < 5:
        parser.error("--pages must be at least 5")
    cv2.setNumThreads(1)
    about = describe_machine()
    counts = {672: args.pages, 2200: args.pages // 5}
    rows = {f"{side} px": measure(side, pages) for side, pages in counts.items()}
    where = about["machine"]
    print(
        f"{where['cpu']}, one of {where['cores']} cores, load {where['load_1min']}, Python {where['python']}"
    )
    print(f"{'long side':<10} {'':<20} {'pages/s':>8} {'median':>10} {'max':>10}")
    for side, row in rows.items():
        for name, figures in row.items():
            print(
                f"{side:<10} {name:<20} {figures['pages_per_s']:>8.1f} "
                f"{figures['median_ms']:>7.1f} ms {figures['max_ms']:>7.1f} ms"
            )
    print(f"{PEER['name']}: {PEER['why']}")
    met = rows["672 px"]["render + photograph"]["pages_per_s"] >= TARGET_PER_S
    print(f"target: {TARGET_PER_S:.0f} photos of 672 px a second, {'met' if met else 'MISSED'}")
    report = {
        "benchmark": "pages",
        **about,
        "note": "other work may have run on this machine meanwhile: see load_1min and load_1min_after",
        "load_1min_after": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "opencv": cv2.__version__,
        "opencv_threads": 1,
        "pages": counts,
        "target_per_s": TARGET_PER_S,
        "target_met": met,
        "rows": rows,
        "peer": PEER,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
