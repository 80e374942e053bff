"""Accuracy, size and speed of pulse-nano, from the checkpoint to every bundle, on patients never trained on.

    python benchmarks/accuracy.py ../shared/ecg/labels.csv

Exports each bundle, scores it with `pulse-edge eval --split test`, lets it write a report for every
page, prints a table and writes benchmarks/results/accuracy.json. Takes about a quarter of an hour on
two cores.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from machine import describe_machine

from pulse_edge import commands, load
from pulse_edge.ecg.instruct import REPORT_QUESTION, SUPERCLASS_PHRASES
from pulse_edge.ecg.measure import measure
from pulse_edge.ecg.paper import render
from pulse_edge.ecg.record import read_record
from pulse_edge.ecg.split import split
from pulse_edge.evaluate.labels import read_labels

RESULT = Path(__file__).parent / "results" / "accuracy.json"
BUNDLES = (("onnx", "fp32"), ("jetson", "fp16"), ("jetson", "int8"), ("jetson", "int4"))
REPORTING = ("jetson", "fp16")  # the bundle that writes the reports
RATE_WITHIN_BPM = 5


def main() -> None:
    """Measure everything, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path, help="labels.csv of the records")
    parser.add_argument("--model", default="pulse-nano", help="checkpoint folder or shipped name")
    parser.add_argument("--limit", type=int, help="at most so many records, for a trial")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        rows.append(measure_one("checkpoint, PyTorch fp32", options.model, None, options))
        for target, precision in BUNDLES:
            made = commands.export(
                target, options.model, None, precision, Path(scratch) / f"{target}-{precision}"
            )
            name = f"bundle, {target} {precision}"
            rows.append(measure_one(name, made["bundle"], made, options))
            if (target, precision) == REPORTING:
                rows[-1]["free_text"] = free_text(made["bundle"], options.labels, options.limit)
    report = {"command": "python benchmarks/accuracy.py", **describe_machine(), "rows": rows}
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print_table(rows)


def measure_one(
    name: str, model: str, made: dict[str, Any] | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Score one model on the test patients."""
    result = commands.evaluate(model, options.labels, "test", options.limit)
    row = {
        key: result[key]
        for key in ("n", "patients", "auroc", "auroc_interval", "f1", "blank_image", "shuffled")
    }
    row |= {"name": name, "seconds_per_record": result["seconds_per_record"]}
    if made:
        row |= {"megabytes": made["bytes"] / 1e6, "parity": made["parity"]}
    return row


def free_text(bundle: str, labels: Path, limit: int | None) -> dict[str, Any]:
    """Let a bundle write reports: how many name a true superclass, and read the rate within 5 bpm?"""
    session = load(bundle)
    named = exact = rates = close = n = 0
    example = ""
    for row in read_labels(labels):
        truth = set(row["superclass"].split(";")) & set(SUPERCLASS_PHRASES)
        if (
            not truth
            or not row.get("patient_id")
            or split(row["patient_id"]) != "test"
            or (limit and n >= limit)
        ):
            continue
        record = read_record(labels.parent / row["record"])
        text = session.ask(render(record).image, REPORT_QUESTION)
        example = example or text
        said = {
            name for name, phrase in SUPERCLASS_PHRASES.items() if phrase in text.partition("Conclusion:")[2]
        }
        n, named, exact = n + 1, named + bool(said & truth), exact + (said == truth)
        rate, read = measure(record).rate_bpm, re.search(r"Rate: (\d+) bpm", text)
        if rate is not None:
            rates, close = (
                rates + 1,
                close + (read is not None and abs(int(read[1]) - rate) <= RATE_WITHIN_BPM),
            )
    return {
        "n": n,
        "names_a_true_superclass": named / n,
        "names_exactly_the_true_superclasses": exact / n,
        "rate_within_5_bpm": close / rates,
        "rates": rates,
        "example": example,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print one line for each model."""
    print(f"{'':28s}{'AUROC':>7s}  {'95 % interval':15s}{'F1':>7s}{'blank':>7s}{'MB':>7s}{'ms/page':>9s}")
    for row in rows:
        low, high = row["auroc_interval"] or (float("nan"), float("nan"))
        size = f"{row['megabytes']:.1f}" if "megabytes" in row else ""
        macro = [row[key]["macro"] for key in ("auroc", "f1")] + [row["blank_image"]["auroc"]["macro"]]
        print(
            f"{row['name']:28s}{macro[0]:7.3f}  {low:.3f} to {high:.3f} {macro[1]:7.3f}"
            f"{macro[2]:7.3f}{size:>7s}{row['seconds_per_record'] * 1e3:9.0f}"
        )
    text = next(row["free_text"] for row in rows if "free_text" in row)
    print(json.dumps(text, indent=1))


if __name__ == "__main__":
    main()
