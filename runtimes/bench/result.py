"""A benchmark's result: medians with their spread, and the comparison of two results with its noise."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pulse_edge.errors import UserError

SCHEMA: Final = 1
KIND: Final = "pulse-edge bench"
# Name: (unit, whether less is better). Measured in every run, but for the last two: once in a process.
METRICS: Final = {
    "preprocess": ("ms", True),
    "vision": ("ms", True),
    "prefill": ("ms", True),
    "ttft": ("ms", True),
    "followup": ("ms", True),
    "labels": ("ms", True),
    "tokens_per_s": ("1/s", False),
    "open": ("ms", True),
    "peak_mb": ("MB", True),
}
_RESAMPLES: Final = 2000


def summarise(processes: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the metrics of the events of some processes, as ``measure.work`` yields them.

    Returns:
        By name of :data:`METRICS`: ``unit``, ``less_is_better``, ``values`` (a list for each process),
        ``median``, ``low`` and ``high`` (quartiles), ``min`` and ``max``.
    """
    metrics = {}
    for name, (unit, less) in METRICS.items():
        key = "ms" if name == "open" else name
        kind = {"open": "open", "peak_mb": "end"}.get(name, "run")
        values = [[float(e[key]) for e in events if e["event"] == kind] for events in processes]
        every = [value for part in values for value in part]
        if not every:
            continue
        low, median, high = (float(q) for q in np.percentile(every, [25, 50, 75]))
        metrics[name] = {
            "unit": unit,
            "less_is_better": less,
            "values": values,
            "median": median,
            "low": low,
            "high": high,
            "min": min(every),
            "max": max(every),
        }
    return metrics


def read_result(path: Path) -> dict[str, Any]:
    """Read a result that `pulse-edge bench --output` wrote.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. Name a file of: pulse-edge bench --output"
        ) from error
    if not isinstance(found, dict) or found.get("kind") != KIND or found.get("schema") != SCHEMA:
        raise UserError(
            f"{path} is not a result of pulse-edge bench. Name a file of: pulse-edge bench --output"
        )
    metrics = found.get("metrics")
    if not isinstance(metrics, dict) or not all(_sound(metrics[name]) for name in METRICS if name in metrics):
        raise UserError(f"{path} is damaged: its metrics are not those of a benchmark. Measure it again.")
    return found


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two results metric by metric.

    The interval is of the ratio of medians, 95 %, by resampling processes and then their runs, which is the
    noise that repeating both benchmarks would show as far as these repetitions tell.

    Returns:
        ``machines_differ`` (fields of the machines that do, which no ratio makes up for) and by metric
        ``before``, ``after``, ``ratio``, ``interval`` and ``verdict``: ``better``, ``worse`` or ``noise``;
        ``one run`` where there is nothing to tell noise by.
    """
    rows = {}
    for name, (unit, less) in METRICS.items():
        if name not in before["metrics"] or name not in after["metrics"]:
            continue
        old, new = (one["metrics"][name]["values"] for one in (before, after))
        a, b = _median(old), _median(new)
        ratio = b / a if a else math.inf
        low, high = _interval(old, new)
        if min(sum(map(len, values)) for values in (old, new)) < 2:
            verdict = "one run"
        elif low <= 1 <= high:
            verdict = "noise"
        else:
            verdict = "better" if (ratio < 1) == less else "worse"
        rows[name] = {
            "unit": unit, "before": a, "after": b,
            "ratio": ratio, "interval": [low, high], "verdict": verdict,
        }  # fmt: skip
    here, there = (dict(one.get("machine") or {}) for one in (before, after))
    fields = sorted(key for key in {*here, *there} - {"load_1min"} if here.get(key) != there.get(key))
    return {"metrics": rows, "machines_differ": fields}


def _interval(old: Sequence[Sequence[float]], new: Sequence[Sequence[float]]) -> tuple[float, float]:
    draw = np.random.default_rng(0)

    def again(values: Sequence[Sequence[float]]) -> float:
        parts = [values[k] for k in draw.integers(0, len(values), len(values))]
        return float(np.median(np.concatenate([draw.choice(part, len(part)) for part in parts if len(part)])))

    old, new = ([part for part in values if len(part)] for values in (old, new))
    ratios = []
    for _ in range(_RESAMPLES):
        a, b = again(old), again(new)
        ratios.append(b / a if a else math.inf)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def _median(values: Sequence[Sequence[float]]) -> float:
    return float(np.median([value for part in values for value in part]))


def _sound(metric: Any) -> bool:
    values = metric.get("values") if isinstance(metric, dict) else None
    if not isinstance(values, list) or not all(isinstance(part, list) for part in values):
        return False
    every = [value for part in values for value in part]
    return bool(every) and all(type(v) in (int, float) and math.isfinite(v) and v >= 0 for v in every)
