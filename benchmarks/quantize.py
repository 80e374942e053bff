"""What each method of quantisation costs pulse-nano, on patients never trained on.

    python benchmarks/quantize.py ../shared/ecg/labels.csv

Every method rounds the same checkpoint, calibrated on training patients, and is scored beside it on the same
test pages: macro AUROC, its loss with a paired interval over patients, and the labels that flipped. Prints a
table and writes benchmarks/results/quantize.json. About a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe_machine

from pulse_edge import load
from pulse_edge.compress import quantize_checkpoint
from pulse_edge.evaluate.gate import BUDGETS, compare, judge
from pulse_edge.evaluate.score import score_records
from pulse_edge.model.checkpoint import resolve_model

RESULT = Path(__file__).parent / "results" / "quantize.json"
PAGES = 64  # to calibrate on
RUNS = (  # bits, group, symmetric, method
    (8, None, True, "rtn"),
    (4, 64, True, "rtn"),
    (4, 64, True, "gptq"),
    (4, 64, True, "awq"),
    (4, 64, True, "clip"),
    (4, 32, True, "gptq"),
    (4, 64, False, "gptq"),
)


def main() -> None:
    """Measure everything, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labels", type=Path, help="labels.csv of the records")
    parser.add_argument("--model", default="pulse-nano", help="checkpoint folder or shipped name")
    parser.add_argument("--limit", type=int, help="at most so many records, for a trial")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    source = resolve_model(options.model)
    before = score_records(load(source), options.labels, "test", options.limit)
    rows: list[dict[str, Any]] = []
    print(
        f"{'':36s}{'AUROC':>8s}{'loss':>9s}  {'95 % interval':20s}{'flips':>7s}{'MB':>6s}{'s':>6s}",
        flush=True,
    )
    for run in RUNS:
        with tempfile.TemporaryDirectory() as scratch:
            row = measure(source, Path(scratch) / "quantised", run, before, options)
        rows.append(row)
        low, high = row["loss_interval"] or (float("nan"), float("nan"))
        print(
            f"{row['name']:36s}{row['auroc']['macro']:8.4f}{row['loss']:+9.4f}  {low:+.4f} to {high:+.4f}    "
            f"{row['flip_share']:7.2%}{row['megabytes']:6.1f}{row['seconds']:6.0f}",
            flush=True,
        )
        write(rows, options)


def write(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write what was measured so far: a run that is stopped leaves whole rows."""
    report = {
        "command": "python benchmarks/quantize.py",
        "model": options.model,
        "calibration_pages": PAGES,
        **describe_machine(),
        "rows": rows,
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")


def measure(
    source: Path, output: Path, run: tuple[int, int | None, bool, str], before: Any, options: Any
) -> dict[str, Any]:
    """Quantise once and compare with the scores of the checkpoint."""
    bits, group, symmetric, method = run
    start = time.perf_counter()
    made = quantize_checkpoint(
        source, output, bits, group, symmetric, method, options.labels, PAGES, 0, False, lambda folder: {}
    )
    seconds = time.perf_counter() - start
    found = compare(before, score_records(load(output), options.labels, "test", options.limit))
    return {
        "name": f"{made['quantization']['form']}, {method}",
        **judge(found, BUDGETS[bits], accept_loss=True),
        "megabytes": sum(path.stat().st_size for path in output.iterdir()) / 1e6,
        "seconds": seconds,
    }


if __name__ == "__main__":
    main()
