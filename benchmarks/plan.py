"""How far `pulse-edge plan` lies from published speeds: fitted on one half of the rows, tested on the other.

    python benchmarks/plan.py

Reads data/published_speed.json, which also states the split, prints the tables and writes results/plan.json.
Nothing is measured here. The first rows were fitted and tested; then newer and other rows were found, and
are predicted by that first fit; the newer ones, split by the same rule, give the rates that `plan` uses.
Checks of robustness: random splits of the same strata, all devices but the one that is tested, and the
Orin Nano rows of NVIDIA's table read in the other power mode.
"""

from __future__ import annotations

import json
import random
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from machine import describe_machine
from roofline_fit import (
    DATA,
    QUANTITIES,
    Fit,
    Row,
    add_costs,
    errors,
    evaluate,
    fit_all,
    group_of,
    load,
    predict,
    usable,
)

RESULT = Path(__file__).parent / "results" / "plan.json"
TARGETS = {"decode": 0.15, "prefill": 0.30}
RANDOM_SPLITS = 200
CACHE = 2200  # tokens, as NVIDIA's page states


def robustness(rows: list[Row]) -> dict[str, Any]:
    """Median errors of the test half over random splits of the same strata, and the band of a prediction.

    The band is the factor within which four of five predictions of rows outside the fit lie.
    """
    medians: dict[str, list[float]] = defaultdict(list)
    ratios: dict[str, list[float]] = defaultdict(list)
    for seed in range(RANDOM_SPLITS):
        chance = random.Random(seed)
        found = evaluate(rows, lambda name, chance=chance: chance.random())  # type: ignore[misc]
        for quantity, (_, test_rows) in found["halves"].items():
            medians[quantity].append(found["tested"][quantity]["test_median_error"])
            for row in test_rows:
                ratio = predict(row, quantity, found["fitted"]) / row[QUANTITIES[quantity]]
                ratios[f"{quantity} {group_of(row, quantity)}"].append(max(ratio, 1 / ratio))
    summary: dict[str, Any] = {"splits": RANDOM_SPLITS, "median_error": {}, "band": {}}
    for quantity, values in medians.items():
        tenths = statistics.quantiles(values, n=20)
        summary["median_error"][quantity] = {
            "median": statistics.median(values), "5 %": tenths[0], "95 %": tenths[-1],
        }  # fmt: skip
    for name, values in sorted(ratios.items()):
        summary["band"][name] = sorted(values)[round(0.8 * (len(values) - 1))]
    return summary


def unseen_devices(rows: list[Row]) -> dict[str, Any]:
    """Leave one device out: fit on all rows of the others, test on its own; harder than the split."""
    held: dict[str, list[float]] = defaultdict(list)
    for device in sorted({row["device"] for row in rows}):
        seen = [row for row in rows if row["device"] != device]
        fitted = fit_all({quantity: usable(seen, quantity) for quantity in QUANTITIES})
        for quantity in QUANTITIES:
            mine = [
                row
                for row in usable(rows, quantity)
                if row["device"] == device
                and group_of(row, quantity) in fitted[quantity]
                and row["runtime"] in fitted["decode"]
            ]
            held[quantity] += errors(mine, quantity, fitted)
    return {
        quantity: {"rows": len(values), "median_error": statistics.median(values)}
        for quantity, values in held.items()
    }


def other_mode(document: dict[str, Any]) -> dict[str, Any]:
    """The same evaluation with NVIDIA's Orin Nano rows read in Super mode."""
    changed = json.loads(DATA.read_text(encoding="utf-8"))["rows"]
    for row in changed:
        if row["id"].startswith("tel-nano"):
            row["device"] = "orin-nano-8gb"
        add_costs(row, document)
    return dict(evaluate(changed)["tested"])


def unseen(rows: list[Row], fitted: Fit) -> dict[str, Any]:
    """Predict rows with rates that were fitted before these were found."""
    lines = [
        line
        for quantity in QUANTITIES
        for line in table_of(
            [
                row
                for row in rows
                if row[QUANTITIES[quantity]] is not None
                and group_of(row, quantity) in fitted[quantity]
                and row["runtime"] in fitted["decode"]
            ],
            quantity,
            fitted,
        )
    ]
    medians: dict[str, dict[str, float]] = {}
    for key in sorted({(line["quantity"], line["group"]) for line in lines}):
        found = [abs(line["error"]) for line in lines if (line["quantity"], line["group"]) == key]
        medians[" ".join(key)] = {"rows": len(found), "median_error": statistics.median(found)}
    return {"median_error": medians, "rows": lines}


def memory_left(rows: list[Row], document: dict[str, Any]) -> dict[str, Any]:
    """What published peaks leave for runtime and activations; `fit.RUNTIME` of a Jetson lies between.

    From each peak go the weights, the embedding table in fp16, the tower in fp16, and a cache of
    :data:`CACHE` tokens. What is left of models with a tower holds the tower's activations too.
    """
    left: dict[str, dict[str, int]] = {"language": {}, "vision": {}}
    for row in rows:
        if row["peak_mb"] is None:
            continue
        entry = document["models"][row["model"]]
        cache = 4 * entry["layers"] * entry["kv_heads"] * entry["head_dim"]
        tower = 2 * entry.get("vision", {}).get("parameters", 0)
        taken = row["bytes"] - row["context"] * cache + 2 * entry["vocab"] * entry["hidden"] + tower
        left["vision" if tower else "language"][row["id"]] = round(
            row["peak_mb"] * 1e6 - taken - CACHE * cache
        )
    medians = {kind: statistics.median(values.values()) for kind, values in left.items()}
    return {"cache_tokens": CACHE, "left": left, "median": medians}


def table_of(rows: list[Row], quantity: str, fitted: Fit) -> list[dict[str, Any]]:
    """Rows with their published and their predicted figure."""
    lines = []
    for row in sorted(rows, key=lambda row: (group_of(row, quantity), row["id"])):
        published, predicted = row[QUANTITIES[quantity]], predict(row, quantity, fitted)
        lines.append(
            {
                "quantity": quantity,
                "group": group_of(row, quantity),
                "id": row["id"],
                "device": row["device"],
                "published": published,
                "predicted": round(predicted, 2),
                "error": round(predicted / published - 1, 4),
                "source": row["source"],
            }
        )
    return lines


def table(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Every row of an evaluation with its half, its published and its predicted figure."""
    return [
        {**line, "half": half}
        for quantity, halves in found["halves"].items()
        for half, rows in zip(("fit", "test"), halves, strict=True)
        for line in table_of(rows, quantity, found["fitted"])
    ]


def show(lines: list[dict[str, Any]], what: str) -> None:
    """Print rows of a table."""
    for line in lines:
        print(
            f"{what:6s}{line['quantity']:8s}{line['half']:5s}{line['id']:36s}{line['published']:10.1f}"
            f"{line['predicted']:10.1f}{line['error']:+9.1%}  {line['group']}"
        )


def summarize(found: dict[str, Any], shaken: dict[str, Any], what: str) -> None:
    """Print the rates and the held-out errors of an evaluation."""
    for quantity, groups in found["fitted"].items():
        for name, rate in groups.items():
            print(f"{what:6s}{quantity:8s}{name:44s}" + ", ".join(f"{k} {v:.3g}" for k, v in rate.items()))
    for quantity, tested in found["tested"].items():
        spread = shaken["median_error"][quantity]
        target = f", asked {TARGETS[quantity]:.0%}" if quantity in TARGETS else ""
        print(
            f"{what:6s}{quantity:8s}held-out median error {tested['test_median_error']:.1%} on "
            f"{tested['test_rows']} rows{target} (fit half {tested['fit_median_error']:.1%}, worst "
            f"{tested['test_worst_error']:.0%}); {shaken['splits']} random splits: {spread['median']:.1%} "
            f"({spread['5 %']:.1%} to {spread['95 %']:.1%})"
        )


def main() -> None:
    """Print the tables and write the result."""
    rows, document = load()
    newer = document["newer"]
    first, second = evaluate(rows), evaluate(newer)
    shaken = {"rows": robustness(rows), "newer": robustness(newer)}
    left_out = {"rows": unseen_devices(rows), "newer": unseen_devices(newer)}
    super_mode = other_mode(document)
    carried, later = unseen(newer, first["fitted"]), unseen(document["later"], first["fitted"])
    left = memory_left(newer, document)
    show(table(first), "rows")
    summarize(first, shaken["rows"], "rows")
    for quantity, tested in super_mode.items():
        print(f"rows  {quantity:8s}Orin Nano in Super mode: {tested['test_median_error']:.1%}")
    show(table(second), "newer")
    summarize(second, shaken["newer"], "newer")
    for what, quantities in left_out.items():
        for quantity, held in quantities.items():
            print(
                f"{what:6s}{quantity:8s}each device in turn left out: {held['median_error']:.1%} "
                f"on {held['rows']} rows"
            )
    for what, found in (("newer rows", carried), ("later rows", later)):
        for name, entry in found["median_error"].items():
            print(f"{what} by the first fit: {name:52s}{entry['median_error']:6.1%} of {entry['rows']} rows")
    medians = ", ".join(f"{kind} {size / 1e9:.2f} GB" for kind, size in left["median"].items())
    print(f"memory: published peaks leave {medians}")
    result = {
        **describe_machine(),
        "targets": TARGETS,
        "rows": {"tested": first["tested"], "fitted": first["fitted"], "table": table(first)},
        "newer": {"tested": second["tested"], "fitted": second["fitted"], "table": table(second)},
        "robustness": shaken,
        "devices_left_out": left_out,
        "nano_in_super_mode": super_mode,
        "newer_by_the_first_fit": carried,
        "later_by_the_first_fit": later,
        "memory_left": left,
    }
    text = json.dumps(result, indent=1)
    # a row stays on one line, so that a change of one shows as one
    text = re.sub(r"\{\s+([^{}\[\]]+?)\s+\}", lambda row: "{" + re.sub(r"\s*\n\s*", " ", row[1]) + "}", text)
    RESULT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
