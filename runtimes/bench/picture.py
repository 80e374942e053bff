"""A benchmark's result as a picture: its runs, and the curves of the sustained run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pulse_edge.chart import Counts, Lines, draw


def draw_result(result: Mapping[str, Any]) -> bytes:
    """Return a PNG file of what `pulse-edge bench` found."""
    metrics = result["metrics"]
    name = f"{result['model']['name']}, {result['model'].get('precision') or result['runtime']}"
    panels: list[Lines | Counts] = [
        Lines(
            f"{name}: time of each run",
            ("run", "ms"),
            {
                key: _numbered(metrics[key]["values"])
                for key in ("ttft", "vision", "prefill")
                if key in metrics
            },
            dots=True,
        ),
        Lines(
            f"{name}: decoding",
            ("run", "tokens/s"),
            {"tokens/s": _numbered(metrics["tokens_per_s"]["values"])},
            dots=True,
        ),
    ]
    found = result.get("sustained")
    if found and found["curve"]["t"]:
        for key, title, unit in (
            ("tokens_per_s", "sustained decoding", "tokens/s"),
            ("temperature", "temperature", "degrees C"),
            ("cpu_mhz", "CPU clock", "MHz"),
            ("gpu_mhz", "GPU clock", "MHz"),
            ("watts", "power", "W"),
        ):
            points = [
                (t, float(value))
                for t, value in zip(found["curve"]["t"], found["curve"][key], strict=True)
                if value is not None
            ]
            if points:
                panels.append(Lines(f"{name}: {title}", ("s", unit), {unit: points}))
    return draw(panels)


def _numbered(values: list[list[float]]) -> list[tuple[float, float]]:
    return [(float(k), value) for k, value in enumerate((v for part in values for v in part), 1)]
