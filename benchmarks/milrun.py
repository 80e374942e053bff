"""How long milrun takes for a Core ML package, by family of ops.

    pulse-edge export --target coreml --output BUNDLE
    python benchmarks/milrun.py BUNDLE/*.mlpackage

Every function of every package runs on inputs of its default shapes (pictures grey, numbers random,
integers 0) with its states carried on. Prints milliseconds a run by family, and writes
benchmarks/results/milrun.json with the machine and the date. "open" is reading the package, decoding its
weights and planning the function; it happens once. The time between the ops (looking up arguments, states
in and out, checking shapes) is the family "between".
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe_machine

from pulse_edge.export.milrun import load_package

RESULT = Path(__file__).parent / "results" / "milrun.json"


def random_inputs(features: dict[str, Any]) -> dict[str, Any]:
    """Return inputs of the default shapes: grey pictures, normal numbers, integers 0."""
    rng = np.random.default_rng(0)
    fed: dict[str, Any] = {}
    for name, feature in features.items():
        if feature.kind == "image":
            fed[name] = np.full(feature.shape, 200, np.uint8)
        elif feature.dtype.startswith("float"):
            fed[name] = rng.standard_normal(feature.shape).astype(np.float32)
        else:
            fed[name] = np.zeros(feature.shape, np.int32)
    return fed


def measure(path: Path, precision: str, runs: int) -> list[dict[str, Any]]:
    """Time every function of a package; return a row for each."""
    begin = time.perf_counter()
    package = load_package(path, precision)
    rows = []
    for function in package.functions:
        package.plan(function)
        opened = time.perf_counter() - begin
        fed, state = random_inputs(package.inputs(function)), package.new_state(function)
        package.run(function, fed, state)
        spent: defaultdict[str, float] = defaultdict(float)
        counted: defaultdict[str, int] = defaultdict(int)

        def observe(
            name: str,
            family: str,
            output: str,
            results: Any,
            seconds: float,
            spent: defaultdict[str, float] = spent,
            counted: defaultdict[str, int] = counted,
        ) -> None:
            spent[family] += seconds
            counted[family] += 1

        begin = time.perf_counter()
        for _ in range(runs):
            package.run(function, fed, state)
        whole = (time.perf_counter() - begin) / runs
        begin = time.perf_counter()
        for _ in range(runs):
            package.run(function, fed, state, observe)
        spent["between"] = time.perf_counter() - begin - sum(spent.values())
        families = {
            family: {"ms": round(1e3 * seconds / runs, 3), "ops": counted[family] // runs}
            for family, seconds in sorted(spent.items(), key=lambda item: -item[1])
        }
        row = {
            "package": path.name,
            "function": function,
            "precision": precision,
            "open_ms": round(1e3 * opened),
        }
        rows.append({**row, "run_ms": round(1e3 * whole, 2), "families": families})
        begin = time.perf_counter()
    return rows


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Time milrun by family of ops.")
    parser.add_argument("packages", nargs="+", type=Path, help=".mlpackage folders")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp16")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each function")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the figures are written")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs must be at least 1")
    about, rows = describe_machine(), []
    print(
        f"{about['machine']['cpu']}, {about['machine']['cores']} cores, load {about['machine']['load_1min']}"
    )
    for path in args.packages:
        for row in measure(path, args.precision, args.runs):
            rows.append(row)
            print(f"\n{row['package']} {row['function']}, {row['precision']}")
            print(f"  {'whole run':<16} {row['run_ms']:>10.2f} ms   (open {row['open_ms']} ms)")
            for family, figure in row["families"].items():
                print(f"  {family:<16} {figure['ms']:>10.2f} ms {figure['ops']:>6} ops")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(
        json.dumps({**about, "runs": args.runs, "rows": rows}, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
