"""What capture does for the model: pulse-nano on clean pages, on photos of them, and on captured photos.

    python benchmarks/capture_accuracy.py ../shared/ecg/labels.csv

Records of patients on the test side of the split. Each page is photographed twice: close up, as people take
them (bent, tilted, shaded), and as a whole sheet on a table, turned by up to 30 degrees and, in half of the
photos, upside down or on its side. The model answers for the page, for each photo as it is, and for what
`rectify` makes of it. Printed are macro AUROC over the superclasses, its share of the clean page's above
chance, and a 95 % interval of the gain (bootstrap over records, the same ones for both).

Writes benchmarks/results/capture_accuracy.json. With ``--scores`` the answers for each record are kept in a
file, and a run that was interrupted goes on there.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from machine import describe_machine
from numpy.typing import NDArray

from pulse_edge import load
from pulse_edge.ecg.paper import GRID_COLOURS, Page, PaperStyle, render
from pulse_edge.ecg.photo import draw_photo_style, photograph
from pulse_edge.ecg.photo_style import BACKGROUNDS
from pulse_edge.ecg.record import read_record
from pulse_edge.ecg.split import split
from pulse_edge.evaluate.labels import read_labels
from pulse_edge.evaluate.score import auroc
from pulse_edge.runtimes.capture.rectify import rectify
from pulse_edge.runtimes.session import Session

RESULT = Path(__file__).parent / "results" / "capture_accuracy.json"
SIDE = 1800  # pixels of the photo's long side
RESAMPLES = 1000
Picture = NDArray[np.uint8]


def close_up(page: Page, rng: random.Random) -> Picture:
    """A photo as people take them."""
    style = draw_photo_style(rng, 1.3)
    return photograph(page.image, page.px_per_mm, style, (SIDE, SIDE * 3 // 4)).image


def whole_sheet(page: Page, rng: random.Random) -> Picture:
    """A sheet on a table, turned."""
    style = draw_photo_style(rng)
    turns = rng.choice((0, 0, 0, 1, 2, 3))
    style = replace(
        style,
        cover=0.0,
        zoom=rng.uniform(0.8, 1.0),
        rotation_deg=rng.uniform(-30, 30),
        quarter_turns=turns,
        background=rng.choice(BACKGROUNDS),
    )
    size = (SIDE, SIDE * 3 // 4) if turns % 2 == 0 else (SIDE * 3 // 4, SIDE)
    return photograph(page.image, page.px_per_mm, style, size).image


KINDS: dict[str, Callable[[Page, random.Random], Picture]] = {
    "close up": close_up,
    "whole sheet": whole_sheet,
}


def main() -> None:
    """Score every picture, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Accuracy with and without capture.")
    parser.add_argument("labels", type=Path, help="labels.csv of the records")
    parser.add_argument("--model", default="pulse-nano")
    parser.add_argument("--limit", type=int, default=120, help="records")
    parser.add_argument("--scores", type=Path, help="JSON lines, one for each record")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    model = load(args.model)
    names = list(model.labels)
    rows = [
        row
        for row in read_labels(args.labels)
        if row.get("patient_id") and split(row["patient_id"]) == "test" and _truth(row) & set(names)
    ][: args.limit]
    lines = (
        args.scores.read_text(encoding="utf-8").splitlines() if args.scores and args.scores.is_file() else []
    )
    answers: list[dict[str, list[float]]] = [json.loads(line) for line in lines][: len(rows)]
    for k in range(len(answers), len(rows)):
        answers.append(answer(model, names, args.labels.parent / rows[k]["record"], k))
        if args.scores:
            with args.scores.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(answers[-1]) + "\n")
        if k % 10 == 9:
            print(f"{k + 1} of {len(rows)} records", flush=True)
    scores = {name: [each[name] for each in answers] for name in answers[0]}
    truth = [[label in _truth(row) for label in names] for row in rows]
    report = {"benchmark": "capture_accuracy", **describe_machine(), "model": args.model, "n": len(rows)}
    report |= summarise({name: np.array(s) for name, s in scores.items()}, np.array(truth), names)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def answer(model: Session, names: list[str], record: Path, seed: int) -> dict[str, list[float]]:
    """Probabilities of the labels for every kind of picture of one record."""
    rng = random.Random(seed)
    page = render(read_record(record), PaperStyle(grid=rng.choice(list(GRID_COLOURS))))
    pictures = {"clean page": page.image}
    for kind, shoot in KINDS.items():
        photo = shoot(page, rng)
        pictures |= {f"{kind}, raw": photo, f"{kind}, captured": rectify(photo).page}
    said = {name: model.label(picture) for name, picture in pictures.items()}
    return {name: [each[label] for label in names] for name, each in said.items()}


def _truth(row: dict[str, str]) -> set[str]:
    return {name.strip() for name in row["superclass"].split(";")}


def summarise(scores: dict[str, NDArray[Any]], truth: NDArray[Any], names: list[str]) -> dict[str, Any]:
    """AUROC of every kind of picture, its share of the clean page's above chance, the gain by capture."""
    macro = {name: _macro(truth, score, names) for name, score in scores.items()}
    clean = macro["clean page"] - 0.5
    share = {name: (value - 0.5) / clean for name, value in macro.items()}
    rng = np.random.default_rng(0)
    gains: dict[str, list[float]] = {kind: [] for kind in KINDS}
    shares: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(RESAMPLES):
        some = rng.integers(0, len(truth), len(truth))
        for kind in KINDS:
            raw, captured, page = (
                _macro(truth[some], scores[name][some], names)
                for name in (f"{kind}, raw", f"{kind}, captured", "clean page")
            )
            gains[kind].append(captured - raw)
            shares[kind].append((captured - 0.5) / (page - 0.5))
    for name, value in macro.items():
        print(f"{name:24s} AUROC {value:.3f}, {100 * share[name]:.1f} % of the clean page's above chance")
    intervals = {}
    for kind in KINDS:
        low, high = np.percentile(gains[kind], [2.5, 97.5])
        share_low, share_high = np.percentile(shares[kind], [2.5, 97.5])
        intervals[kind] = {"gain": [low, high], "share": [share_low, share_high]}
        print(f"{kind}: gain by capture {low:+.3f} to {high:+.3f}, share {share_low:.3f} to {share_high:.3f}")
    return {"auroc": macro, "share": share, "intervals_95": intervals}


def _macro(truth: NDArray[Any], score: NDArray[Any], names: list[str]) -> float:
    return float(auroc(truth, score, names)["macro"] or 0.0)


if __name__ == "__main__":
    main()
