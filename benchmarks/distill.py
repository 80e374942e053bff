"""What a third of pulse-nano keeps of it: taught by it, and taught alone.

    python benchmarks/distill.py ../shared/ecg/labels.csv

Two students of the recipe nano-third begin with the same pruned weights and see the same pages in the same
order for as many steps. One has the teacher's distributions, label scores and visual tokens, the other the
answers alone. Both are scored on test patients beside the teacher, with paired intervals over patients.
Prints a table and writes benchmarks/results/distill.json. With --work an interrupted run goes on where it
was. About three hours on one quiet core with the recipe's 1,536 pages and 1,500 steps; --pages and --steps
make it shorter.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine

from pulse_edge.compress import distill_checkpoint
from pulse_edge.compress.recipe import read_recipe
from pulse_edge.evaluate.gate import compare
from pulse_edge.evaluate.score import Scored, score_records
from pulse_edge.model.checkpoint import load_model, resolve_model
from pulse_edge.runtimes.load import load

RESULT = Path(__file__).parent / "results" / "distill.json"


def main() -> None:
    """Teach both students, score them, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("labels", type=Path, help="labels.csv of the records")
    parser.add_argument("--model", default="pulse-nano", help="the teacher")
    parser.add_argument("--recipe", default="nano-third")
    parser.add_argument("--pages", type=int, help="lessons, in place of the recipe's")
    parser.add_argument("--steps", type=int, help="steps, in place of the recipe's")
    parser.add_argument("--split", default="test", help="patients to measure on")
    parser.add_argument("--limit", type=int, help="at most so many records, for a trial")
    parser.add_argument("--work", type=Path, help="folder for lessons and students, kept")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        measure(options, options.work or Path(scratch))


def measure(options: argparse.Namespace, work: Path) -> None:
    """Do it, with everything that is made in ``work``."""
    source, plan = resolve_model(options.model), read_recipe(options.recipe)
    teacher = score_records(load(source), options.labels, options.split, options.limit)
    rows: dict[str, dict[str, Any]] = {}
    scores: dict[str, Scored] = {}
    for name, alone in (("taught", False), ("alone", True)):
        output, start, made = work / name, time.perf_counter(), None
        if not output.is_dir():
            made = distill_checkpoint(
                source, output, options.recipe, options.labels, work / "lessons", options.pages,
                options.steps, alone, lambda folder: {},
            )  # fmt: skip
        seconds = time.perf_counter() - start
        scores[name] = score_records(load(output), options.labels, options.split, options.limit)
        found = compare(teacher, scores[name])
        above = (found["auroc"]["macro"] - 0.5) / (found["auroc_before"]["macro"] - 0.5)
        size = [sum(p.numel() for p in load_model(folder).parameters()) for folder in (source, output)]
        rows[name] = {
            **found,
            "of_above_chance": above,
            "parameters": size,
            "seconds": seconds if made else None,
        }
        print(
            f"{name:8s}{size[1]:>10,} of {size[0]:,}  macro AUROC {found['auroc']['macro']:.4f} of "
            f"{found['auroc_before']['macro']:.4f}, {above:.1%} of what is above chance  {seconds:.0f} s",
            flush=True,
        )
    gain = compare(scores["alone"], scores["taught"])
    low, high = (-value for value in reversed(gain["loss_interval"] or (float("nan"),) * 2))
    print(f"the teacher's part: {-gain['loss']:+.4f} ({low:+.4f} to {high:+.4f})")
    report = {
        "command": "python benchmarks/distill.py",
        "model": options.model,
        "recipe": plan.name,
        "split": options.split,
        "pages": options.pages or plan.pages,
        "steps": options.steps or plan.course.steps,
        **describe_machine(),
        "students": rows,
        "gain": {"auroc": -gain["loss"], "interval": [low, high]},
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
