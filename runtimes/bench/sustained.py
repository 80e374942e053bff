"""How speed holds up while a machine gets hot: the curve of a long run, and what is left of the beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from pulse_edge.runtimes.bench.sensors import Sample

POINTS: Final = 240  # of the curve; more pages are averaged
_SHARE: Final = 0.1  # of the time: the beginning and the end that are compared
_DROP: Final = 0.95  # below this part of the beginning, speed has fallen


def curve(runs: Sequence[Mapping[str, Any]], samples: Sequence[Sample], asked: float) -> dict[str, Any]:
    """Describe a long run.

    Args:
        runs: as ``measure.work`` yields them, in order.
        samples: of the sensors meanwhile.
        asked: seconds that it should have lasted.

    Returns:
        ``seconds`` and ``asked``, ``pages``, ``curve`` (``t`` in seconds, ``tokens_per_s``, ``ttft``,
        ``temperature``, ``cpu_mhz``, ``gpu_mhz``, ``watts``: lists of one length, None where not told),
        ``begin`` and ``end`` (median tokens/s of the first and last tenth), ``kept`` (end to begin),
        ``throttled`` and ``hottest``.
    """
    if not runs:
        return {"seconds": 0.0, "asked": asked, "pages": 0, "curve": {"t": []}, "kept": None}
    begin, end = float(runs[0]["start"]), float(runs[-1]["end"])
    edges = np.linspace(begin, end, min(POINTS, len(runs)) + 1)
    place = np.clip(np.searchsorted(edges, [run["start"] for run in runs], "right") - 1, 0, len(edges) - 2)
    filled = [k for k in range(len(edges) - 1) if (place == k).any()]
    speed, first = (np.array([run[key] for run in runs]) for key in ("tokens_per_s", "ttft"))
    shown: dict[str, list[Any]] = {
        "t": [float(edges[k] - begin) for k in filled],
        "tokens_per_s": [float(speed[place == k].mean()) for k in filled],
        "ttft": [float(first[place == k].mean()) for k in filled],
    }
    parts = [[s for s in samples if edges[k] <= s.at <= edges[k + 1]] for k in filled]
    for name in ("temperature", "cpu_mhz", "gpu_mhz"):
        shown[name] = [_mean([getattr(sample, name) for sample in part]) for part in parts]
    shown["watts"] = [_watts(part) for part in parts]
    since = np.array([run["start"] for run in runs]) - begin
    length = max(end - begin, 1e-9)
    head, tail = speed[since <= _SHARE * length], speed[since >= (1 - _SHARE) * since[-1]]
    kept = float(np.median(tail) / np.median(head)) if np.median(head) else None
    hot = [sample.temperature for sample in samples if sample.temperature is not None]
    return {
        "seconds": end - begin,
        "asked": asked,
        "pages": len(runs),
        "curve": shown,
        "begin": float(np.median(head)),
        "end": float(np.median(tail)),
        "kept": kept,
        "throttled": kept is not None and kept < _DROP,
        "hottest": max(hot, default=None),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _watts(part: Sequence[Sample]) -> float | None:
    counted = [(sample.at, sample.joules) for sample in part if sample.joules is not None]
    if len(counted) < 2 or counted[-1][0] <= counted[0][0]:
        return None
    return (counted[-1][1] - counted[0][1]) / (counted[-1][0] - counted[0][0])
