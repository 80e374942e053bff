"""How long `pulse-edge --help` takes, as a user meets it: a new process each time.

    python benchmarks/help_latency.py

Prints a table and writes benchmarks/results/help_latency.json with the machine and the date. Beside the
command stands the time of an interpreter that starts and does nothing, which no command can undercut.
The target is a median under 300 ms; it is a figure to watch and not a test, because it depends on the
machine and on what else runs there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from machine import describe_machine

RESULT = Path(__file__).parent / "results" / "help_latency.json"
TARGET_MS = 300.0
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "pulse-edge --help": [str(Path(sys.executable).with_name("pulse-edge")), "--help"],
}


def wall_ms(command: Sequence[str]) -> float:
    """Wall time of one run of a command in milliseconds.

    Raises:
        SystemExit: the command is not installed or fails; there is then nothing to time.
    """
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    except FileNotFoundError:
        raise SystemExit(f'{command[0]} does not exist. Install it with: pip install -e ".[dev]"') from None
    elapsed = 1000.0 * (time.perf_counter() - begin)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr.decode(errors='replace')}")
    return elapsed


def measure(runs: int) -> dict[str, dict[str, float]]:
    """Time every command ``runs`` times, in turns, after one run of each that warms the disk cache."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        wall_ms(command)
    for _ in range(runs):
        for name, command in COMMANDS.items():
            times[name].append(wall_ms(command))
    return {
        name: {
            "median_ms": round(statistics.median(values), 1),
            "min_ms": round(min(values), 1),
            "max_ms": round(max(values), 1),
        }
        for name, values in times.items()
    }


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Time `pulse-edge --help`.")
    parser.add_argument("--runs", type=int, default=20, help="timed runs of each command")
    parser.add_argument("--output", type=Path, default=RESULT, help="where the figures are written")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs must be at least 1")
    about, figures = describe_machine(), measure(args.runs)
    where = about["machine"]
    print(f"{where['cpu']}, {where['cores']} cores, load {where['load_1min']}, Python {where['python']}")
    print(f"{'command':<20} {'median':>9} {'min':>9} {'max':>9}   ({args.runs} runs)")
    for name, row in figures.items():
        print(f"{name:<20} {row['median_ms']:>6.1f} ms {row['min_ms']:>6.1f} ms {row['max_ms']:>6.1f} ms")
    met = figures["pulse-edge --help"]["median_ms"] < TARGET_MS
    print(f"target: median under {TARGET_MS:.0f} ms, {'met' if met else 'MISSED'}")
    report = {
        "benchmark": "help_latency",
        **about,
        "runs": args.runs,
        "target_ms": TARGET_MS,
        "target_met": met,
        "commands": figures,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
