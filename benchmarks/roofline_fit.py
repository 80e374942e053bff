"""What a roofline needs of published speeds: rows with their costs, how they are split, fitted and predicted.

`plan.py` reports what comes of it.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from scipy.optimize import lsq_linear

from pulse_edge.device import load_device
from pulse_edge.roofline import prompt_flops, prompt_ms, token_bytes, token_ms
from pulse_edge.shape import ModelShape

DATA = Path(__file__).parent / "data" / "published_speed.json"
QUANTITIES = {"decode": "decode_tokens_s", "prefill": "prefill_ms", "vision": "vision_ms"}
LAUNCH_ROWS = 4  # fewer rows, or rows of one model, cannot tell a fixed time from a share
Row = dict[str, Any]
Fit = dict[str, dict[str, dict[str, float]]]  # quantity -> group -> share, launch_us


def load() -> tuple[list[Row], dict[str, Any]]:
    """Return the rows, with their shapes' and formats' costs added, and the whole document."""
    document = json.loads(DATA.read_text(encoding="utf-8"))
    for row in [*document["rows"], *document["newer"], *document["later"]]:
        add_costs(row, document)
    return document["rows"], document


def add_costs(row: Row, document: dict[str, Any]) -> None:
    """Add to a row what the model computes: bytes a token, operations, and the device's peaks."""
    device = load_device(row["device"])
    entry = {k: v for k, v in document["models"][row["model"]].items() if k != "source"}
    vision = entry.pop("vision", None)
    shape = ModelShape(name=row["model"], context=1 << 20, **entry)
    form = document["formats"][row["format"]]
    peak = "fp4_tflops" if row["format"] == "nvfp4" else "fp16_tflops"
    row["layers"] = shape.layers
    row["bytes"] = token_bytes(shape, form["linear_bits"], form["head_bits"], row["context"])
    row["gb_s"] = device.values["bandwidth_gb_s"].value
    row["peak"], row["peak_fp16"] = device.values[peak].value, device.values["fp16_tflops"].value
    row["unit"] = device.values["sm"].value or device.values["chip"].value
    row["flops"] = prompt_flops(shape, row["prefill_tokens"]) if row["prefill_tokens"] else None
    row["vision_flops"] = vision_flops(vision, row["vision_tokens"]) if row["vision_tokens"] else None


def vision_flops(vision: dict[str, int], tokens: int) -> float:
    """Operations of a tower; layers with windowed attention count none for it (windows are small)."""
    n, h = tokens * vision["patches_per_token"], vision["hidden"]
    matrices = vision["layers"] * (4 * h * h + vision["matrices"] * h * vision["ffn"])
    return 2.0 * n * matrices + 4.0 * n**2 * h * (vision["layers"] - vision["windowed"])


def group_of(row: Row, quantity: str) -> str:
    """Rows of a group share one efficiency."""
    parts = {
        "decode": (row["runtime"],),
        "prefill": (row["runtime"], row["unit"], row["format"]),
        "vision": (row["runtime"], row["unit"]),
    }
    return " ".join(parts[quantity])


def usable(rows: Iterable[Row], quantity: str) -> list[Row]:
    """Rows that have the quantity, of groups with more than one row."""
    mine = [row for row in rows if row[QUANTITIES[quantity]] is not None]
    count: dict[str, int] = defaultdict(int)
    for row in mine:
        count[group_of(row, quantity)] += 1
    return [row for row in mine if count[group_of(row, quantity)] > 1]


def split(
    rows: list[Row], quantity: str, order: Callable[[str], Any] | None = None
) -> tuple[list[Row], list[Row]]:
    """Deal the rows of a quantity into fit and test, as the data file states it.

    Args:
        rows: all rows.
        quantity: decode, prefill or vision.
        order: of the ids within a stratum; by default their sha256.
    """
    order = order or (lambda name: hashlib.sha256(name.encode()).hexdigest())
    ranked = sorted(
        usable(rows, quantity), key=lambda row: (group_of(row, quantity), row["device"], order(row["id"]))
    )
    return ranked[::2], ranked[1::2]


def fit_all(halves: dict[str, list[Row]]) -> Fit:
    """Fit every group of every quantity on its rows."""
    fitted: Fit = {"decode": {}, "prefill": {}, "vision": {}}
    for quantity in QUANTITIES:
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in halves[quantity]:
            groups[group_of(row, quantity)].append(row)
        for name, rows in sorted(groups.items()):
            fitted[quantity][name] = fit_group(rows, quantity, fitted)
    return fitted


def fit_group(rows: list[Row], quantity: str, fitted: Fit) -> dict[str, float]:
    """Fit one group: decode by least squares of the relative error, the others by the median."""
    if quantity == "decode":
        return _fit_decode(rows)
    if quantity == "vision":
        shares = [row["vision_flops"] / (row["peak_fp16"] * 1e9 * row["vision_ms"]) for row in rows]
        return {"share": statistics.median(shares), "rows": len(rows)}
    shares = []
    for row in rows:
        launch = fitted["decode"][row["runtime"]]["launch_us"] * row["layers"] / 1e3
        shares.append(row["flops"] / (row["peak"] * 1e9 * (row["prefill_ms"] - launch)))
    return {"share": statistics.median(shares), "rows": len(rows)}


def _fit_decode(rows: list[Row]) -> dict[str, float]:
    with_launch = len(rows) >= LAUNCH_ROWS and len({row["model"] for row in rows}) > 1
    times = [1e3 / row["decode_tokens_s"] for row in rows]
    columns = [
        [row["bytes"] / (row["gb_s"] * 1e6) / t, (row["layers"] / 1e3 / t) * with_launch]
        for row, t in zip(rows, times, strict=True)
    ]
    # 1 / share is at least 1: no runtime is faster than the memory.
    found = lsq_linear(columns, [1.0] * len(rows), bounds=([1.0, 0.0], [50.0, 5e3])).x
    return {"share": 1 / found[0], "launch_us": found[1] if with_launch else 0.0, "rows": len(rows)}


def predict(row: Row, quantity: str, fitted: Fit) -> float:
    """Return tokens a second for decode, milliseconds for the others."""
    rate = fitted[quantity][group_of(row, quantity)]
    if quantity == "vision":
        return float(row["vision_flops"] / (row["peak_fp16"] * 1e9 * rate["share"]))
    decode = fitted["decode"][row["runtime"]]
    if quantity == "decode":
        return 1e3 / token_ms(row["bytes"], row["layers"], row["gb_s"], decode["share"], decode["launch_us"])
    weights = row["bytes"] / (row["gb_s"] * 1e6 * decode["share"])
    return prompt_ms(row["flops"], row["peak"], rate["share"], weights, row["layers"], decode["launch_us"])


def errors(rows: list[Row], quantity: str, fitted: Fit) -> list[float]:
    """Relative errors, |predicted / published - 1|."""
    return [abs(predict(row, quantity, fitted) / row[QUANTITIES[quantity]] - 1) for row in rows]


def evaluate(rows: list[Row], order: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Fit on one half, test on the other; see :func:`split`."""
    halves = {quantity: split(rows, quantity, order) for quantity in QUANTITIES}
    fitted = fit_all({quantity: half[0] for quantity, half in halves.items()})
    tested = {}
    for quantity, (fit_rows, test_rows) in halves.items():
        test = errors(test_rows, quantity, fitted)
        tested[quantity] = {
            "fit_rows": len(fit_rows),
            "test_rows": len(test_rows),
            "fit_median_error": statistics.median(errors(fit_rows, quantity, fitted)),
            "test_median_error": statistics.median(test),
            "test_worst_error": max(test),
        }
    return {"fitted": fitted, "tested": tested, "halves": halves}
