"""pulse-nano on held-out patients: clean pages, photos of them as they are, and photos after capture.

    python benchmarks/photo_accuracy.py ../shared/ecg/labels.csv --scores scores.jsonl

For each picture the model scores the five superclasses and four findings (atrial fibrillation, pacing,
complete left and right bundle branch block) by a closed question, reads the heart rate and writes a report.
Photos are close-ups as people take them (`capture_accuracy.close_up`, severity 1.3 of `ecg/photo_style.py`).
Truth: PTB-XL's statements for patients on one side of the split; for the other databases of the table, which
have no superclasses and were never learnt from, what their SNOMED codes state. Heart rate: `ecg/measure.py`
on the signal. Intervals are 95 %, resampling patients; the loss on photos is paired.

The test patients are for the last look at a model: choose models with ``--side validation``. Writes
benchmarks/results/photo_accuracy.json; answers are kept in ``--scores``, where an interrupted run goes on.
On two quiet cores 419 records take about twenty minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from capture_accuracy import close_up
from machine import describe_machine
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pulse_edge import load
from pulse_edge.ecg.instruct import FINDINGS, RATE_QUESTIONS, REPORT_QUESTION, RHYTHMS, SUPERCLASS_PHRASES
from pulse_edge.ecg.measure import measure
from pulse_edge.ecg.paper import blank, render
from pulse_edge.ecg.record import read_record
from pulse_edge.ecg.split import split
from pulse_edge.errors import PulseEdgeError
from pulse_edge.evaluate.labels import read_labels
from pulse_edge.runtimes.capture.rectify import rectify
from pulse_edge.runtimes.session import Session
from pulse_edge.train.sources.snomed_codes import MEANINGS

RESULT: Final = Path(__file__).parent / "results" / "photo_accuracy.json"
ASKED: Final = {code: {"phrase": (RHYTHMS | FINDINGS)[code]} for code in ("AFIB", "PACE", "CLBBB", "CRBBB")}
GROUPS: Final = tuple(SUPERCLASS_PHRASES)
KINDS: Final = ("clean", "photo", "captured")
WITHIN_BPM: Final = 5
RESAMPLES: Final = 1000
LEAST: Final = 5  # positives and negatives from which an area is worth its name
Row = dict[str, Any]


def main() -> None:
    """Ask about every picture, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Accuracy on photos of held-out patients' pages.")
    parser.add_argument("labels", type=Path, help="labels.csv of the records")
    parser.add_argument("--model", default="pulse-nano", help="checkpoint, bundle or shipped name")
    parser.add_argument("--side", default="test", choices=("validation", "test"))
    parser.add_argument("--limit", type=int, help="records of each kind of database, for a trial")
    parser.add_argument("--scores", type=Path, help="JSON lines, one for each record")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    model = load(args.model)
    model.labels = {**model.labels, **ASKED}
    rows = choose(args.labels, args.side, args.limit)
    kept = (
        args.scores.read_text(encoding="utf-8").splitlines() if args.scores and args.scores.is_file() else []
    )
    done: dict[str, Row] = {row["record"]: row for row in map(json.loads, kept)}
    for count, row in enumerate(rows, start=1):
        if row["record"] in done:
            continue
        done[row["record"]] = row | answer(model, args.labels.parent / row["record"])
        if args.scores:
            with args.scores.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(done[row["record"]]) + "\n")
        if count % 20 == 0:
            print(f"{count} of {len(rows)} records", flush=True)
    empty = model.label(blank())
    scored = [done[row["record"]] for row in rows]
    report = {"benchmark": "photo_accuracy", **describe_machine(), "model": args.model, "side": args.side}
    report |= summarise(scored, empty)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_table(report)


def choose(labels: Path, side: str, limit: int | None) -> list[Row]:
    """Return the records of one side's patients that have a superclass, then those of other databases."""
    own, other = [], []
    for row in read_labels(labels):
        groups = [name for name in GROUPS if name in row["superclass"].split(";")]
        codes = [code for code in row["codes"].split(";") if code]
        who = {"record": row["record"], "patient": row["patient_id"] or row["record"], "groups": groups}
        if row["scheme"] == "scp" and groups and row["patient_id"] and split(row["patient_id"]) == side:
            own.append(who | {"own": True, "has": {code: code in codes for code in ASKED}})
        elif row["scheme"] == "snomed" and not row["patient_id"] and set(codes) <= MEANINGS.keys():
            stated = {code for name in codes for code in MEANINGS[name].stated}
            open_ = {code for name in codes for code in MEANINGS[name].open} - stated
            has = {code: None if code in open_ else code in stated for code in ASKED}
            other.append(who | {"own": False, "has": has})
    return own[:limit] + other[:limit]


def answer(model: Session, base: Path) -> Row:
    """Return what the model says of every kind of picture of one record, and the measured rate."""
    record = read_record(base)
    page = render(record)
    photo = close_up(page, random.Random(base.name))
    pictures = {"clean": page.image, "photo": photo}
    try:
        pictures["captured"] = rectify(photo).page
    except PulseEdgeError:
        pictures["captured"] = photo  # the device would show the photo and say so
    said: Row = {"bpm": measure(record).rate_bpm, "lost": pictures["captured"] is photo}
    for kind, picture in pictures.items():
        rate = re.search(r"(\d+) bpm", model.ask(picture, RATE_QUESTIONS[0]))
        conclusion = model.ask(picture, REPORT_QUESTION).partition("Conclusion:")[2]
        said[kind] = {
            "p": model.label(picture),
            "bpm": int(rate[1]) if rate else None,
            "names": [name for name, phrase in SUPERCLASS_PHRASES.items() if phrase in conclusion],
        }
    return said


def summarise(rows: list[Row], empty: dict[str, float]) -> dict[str, Any]:
    """Return areas with intervals, rates, reports and the loss on photos, by kind of picture."""
    own, other = ([row for row in rows if row["own"] is mine] for mine in (True, False))
    draws = resamples([row["patient"] for row in own])
    truth = np.array([[name in row["groups"] for name in GROUPS] for row in own])
    kinds: dict[str, Any] = {}
    macros: dict[str, NDArray[np.float64]] = {}
    for kind in KINDS:
        score = np.array([[row[kind]["p"][name] for name in GROUPS] for row in own])
        each = [np.array([area(truth[d, k], score[d, k]) for d in draws]) for k in range(len(GROUPS))]
        macros[kind] = np.mean(each, axis=0)
        areas = [area(truth[:, k], score[:, k]) for k in range(len(GROUPS))]
        kinds[kind] = {
            "macro": [float(np.mean(areas)), *limits(macros[kind])],
            "auroc": {name: [a, *limits(e)] for name, a, e in zip(GROUPS, areas, each, strict=True)},
            "findings": {code: finding(own, kind, code, draws) for code in ASKED},
            **told(own, kind),
        }
    loss = {
        kind: [kinds["clean"]["macro"][0] - kinds[kind]["macro"][0], *limits(macros["clean"] - macros[kind])]
        for kind in KINDS[1:]
    }
    elsewhere = {
        kind: {
            code: finding(other, kind, code, resamples([row["patient"] for row in other])) for code in ASKED
        }
        | {"rate_within_5_bpm": told(other, kind)["rate_within_5_bpm"]}
        for kind in KINDS
        if other
    }
    same = np.tile([empty[name] for name in GROUPS], (len(own), 1))
    return {
        "n": len(own),
        "patients": len({row["patient"] for row in own}),
        "not_captured": sum(row["lost"] for row in own),
        "kinds": kinds,
        "loss_against_clean": loss,
        "blank_page_macro": float(np.mean([area(truth[:, k], same[:, k]) for k in range(len(GROUPS))])),
        "other_databases": {"n": len(other), **elsewhere},
    }


def finding(rows: list[Row], kind: str, code: str, draws: list[NDArray[np.int64]]) -> dict[str, Any]:
    """Return area, interval and number of positives of one finding where the labels tell of it."""
    known = np.array([row["has"][code] is not None for row in rows])
    true = np.array([bool(row["has"][code]) for row in rows])
    score = np.array([row[kind]["p"][code] for row in rows])
    count = int(true[known].sum())
    if min(count, int(known.sum()) - count) < LEAST:
        return {"positives": count, "auroc": None}
    areas = np.array([area(true[d[known[d]]], score[d[known[d]]]) for d in draws])
    return {"positives": count, "auroc": [area(true[known], score[known]), *limits(areas)]}


def told(rows: list[Row], kind: str) -> dict[str, Any]:
    """Return how often the rate is read and the report names the superclass."""
    rated = [(row[kind]["bpm"], row["bpm"]) for row in rows if row["bpm"] is not None]
    close = [said is not None and abs(said - true) <= WITHIN_BPM for said, true in rated]
    named = [(set(row[kind]["names"]), set(row["groups"])) for row in rows if row["groups"]]
    return {
        "rate_within_5_bpm": float(np.mean(close)) if close else None,
        "rates": len(close),
        "names_a_true_superclass": float(np.mean([bool(a & b) for a, b in named])) if named else None,
        "names_exactly_the_true_ones": float(np.mean([a == b for a, b in named])) if named else None,
    }


def resamples(patients: list[str]) -> list[NDArray[np.int64]]:
    """Return indices of records, patients drawn with replacement."""
    names = np.array(patients)
    members = [np.flatnonzero(names == patient) for patient in dict.fromkeys(patients)]
    rng = np.random.default_rng(0)
    return [
        np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        for _ in range(RESAMPLES if members else 0)
    ]


def area(true: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Area under the ROC curve; NaN where the truth is constant."""
    return float(roc_auc_score(true, score)) if 0 < true.sum() < len(true) else float("nan")


def limits(values: NDArray[np.float64]) -> list[float]:
    """The middle 95 %; resamples without a positive are left out."""
    return [float(value) for value in np.nanpercentile(values, [2.5, 97.5])]


def print_table(report: dict[str, Any]) -> None:
    """Print a line for each kind of picture."""
    print(f"{report['n']} records of {report['patients']} {report['side']} patients")
    for kind, row in report["kinds"].items():
        areas = "  ".join(f"{name} {value[0]:.3f}" for name, value in row["auroc"].items())
        seen = "  ".join(
            f"{code} {found['auroc'][0]:.3f}" if found["auroc"] else f"{code} ({found['positives']})"
            for code, found in row["findings"].items()
        )
        macro, low, high = row["macro"]
        print(f"{kind:9s} macro {macro:.3f} ({low:.3f} to {high:.3f})  {areas}")
        rate, named = row["rate_within_5_bpm"], row["names_a_true_superclass"]
        print(f"{'':9s} {seen}  rate {rate:.0%}  report {named:.0%}")
    for kind, (loss, low, high) in report["loss_against_clean"].items():
        print(f"{kind}: {loss:+.3f} lost ({low:+.3f} to {high:+.3f})")
    print(f"blank page {report['blank_page_macro']:.3f}")


if __name__ == "__main__":
    main()
