"""The published speeds: sourced, split as stated, and reproduced within what was asked."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import sys

import pytest

from pulse_edge import fit, roofline
from pulse_edge.device import CONFIDENCE, list_devices

QUANTITIES = ("decode", "prefill", "vision")


@pytest.fixture(scope="module")
def bench(root):
    """benchmarks/plan.py, imported as it runs: with its neighbours on the path."""
    sys.path.insert(0, str(root / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_plan", root / "benchmarks" / "plan.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(root / "benchmarks"))


@pytest.fixture(scope="module")
def rows(bench):
    return bench.load()[0]


@pytest.fixture(scope="module")
def document(root):
    return json.loads((root / "benchmarks" / "data" / "published_speed.json").read_text())


def test_every_row_says_where_it_comes_from(document):
    assert len({row["id"] for row in document["rows"]}) == len(document["rows"]) > 50
    for row in document["rows"]:
        assert row["source"]
        assert row["confidence"] in CONFIDENCE
        assert row["device"] in list_devices()
        assert row["model"] in document["models"]
        assert row["format"] in document["formats"]
        assert (row["prefill_ms"] is None) == (row["prefill_tokens"] is None)
        assert (row["vision_ms"] is None) == (row["vision_tokens"] is None)
        assert any(row[name] is not None for name in ("decode_tokens_s", "prefill_ms", "vision_ms"))
    for part in ("models", "formats"):
        assert all(entry["source"] for entry in document[part].values())
    assert all(entry["source"] and entry["why"] for entry in document["excluded"])


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_split_is_the_stated_one(bench, rows, quantity):
    """Written again from the words of the data file."""
    column = {"decode": "decode_tokens_s", "prefill": "prefill_ms", "vision": "vision_ms"}[quantity]

    def group(row):
        return {
            "decode": row["runtime"],
            "prefill": f"{row['runtime']} {row['unit']} {row['format']}",
            "vision": f"{row['runtime']} {row['unit']}",
        }[quantity]

    mine = [row for row in rows if row[column] is not None]
    mine = [row for row in mine if sum(group(other) == group(row) for other in mine) > 1]
    mine.sort(key=lambda row: (group(row), row["device"], hashlib.sha256(row["id"].encode()).hexdigest()))
    fitted, tested = bench.split(rows, quantity)
    assert [row["id"] for row in fitted] == [row["id"] for row in mine[::2]]
    assert [row["id"] for row in tested] == [row["id"] for row in mine[1::2]]
    assert 0 <= len(fitted) - len(tested) <= 1


def test_the_fit_never_sees_the_tested_rows(bench, rows):
    changed = copy.deepcopy(rows)
    tested = {row["id"] for row in bench.split(rows, "decode")[1]}
    for row in changed:
        if row["id"] in tested:
            row["decode_tokens_s"] *= 3
    before, after = bench.evaluate(rows), bench.evaluate(changed)
    assert before["fitted"]["decode"] == after["fitted"]["decode"]
    assert after["tested"]["decode"]["test_median_error"] > 0.5


def test_the_fit_finds_rates_that_made_the_rows(bench, rows):
    made = copy.deepcopy([row for row in rows if row["runtime"] == "tensorrt-edge-llm"])
    for row in made:
        if row["decode_tokens_s"]:
            row["decode_tokens_s"] = 1e3 / roofline.token_ms(
                row["bytes"], row["layers"], row["gb_s"], 0.8, 90
            )
    found = bench.evaluate(made)["fitted"]["decode"]["tensorrt-edge-llm"]
    assert found["share"] == pytest.approx(0.8)
    assert found["launch_us"] == pytest.approx(90)


def test_held_out_errors_are_within_what_was_asked(bench, rows):
    tested = bench.evaluate(rows)["tested"]
    assert tested["decode"]["test_median_error"] <= 0.15
    assert tested["prefill"]["test_median_error"] <= 0.30
    assert tested["decode"]["test_rows"] >= 20
    assert tested["prefill"]["test_rows"] >= 10


def test_the_committed_result_is_what_the_command_computes(root, bench, rows):
    kept = json.loads((root / "benchmarks" / "results" / "plan.json").read_text())
    found = bench.evaluate(rows)
    for quantity in QUANTITIES:
        assert kept["tested"][quantity] == pytest.approx(found["tested"][quantity])
    assert [row["id"] for row in kept["rows"]] == [row["id"] for row in bench.table(found)]
    for row, line in zip(kept["rows"], bench.table(found), strict=True):
        assert row["predicted"] == pytest.approx(line["predicted"], abs=0.02)


def test_plan_uses_the_rates_that_were_fitted(bench, rows):
    fitted = bench.evaluate(rows)["fitted"]
    decode = fitted["decode"]["tensorrt-edge-llm"]
    assert roofline.DECODE[("jetson", None)].share == pytest.approx(decode["share"], rel=0.005)
    assert roofline.LAUNCH_US["jetson"] == pytest.approx(decode["launch_us"], rel=0.005)
    for key, name in (
        (("jetson", "8.7", None), "tensorrt-edge-llm 8.7 int4-g128"),
        (("jetson", "11.0", "int4"), "tensorrt-edge-llm 11.0 int4-g128"),
        (("jetson", "11.0", "nvfp4"), "tensorrt-edge-llm 11.0 nvfp4"),
    ):
        assert roofline.PREFILL[key].share == pytest.approx(fitted["prefill"][name]["share"], rel=0.01)
    for sm in ("8.7", "11.0"):
        share = fitted["vision"][f"tensorrt-edge-llm {sm}"]["share"]
        assert roofline.VISION[("jetson", sm)].share == pytest.approx(share, rel=0.01)


def test_single_rows_that_plan_uses_give_their_shares(rows):
    """Apple's two rows, one for each precision, and the only fp16 prefill of Thor."""
    by_id = {row["id"]: row for row in rows}
    for precision, name in (("fp16", "apple-llama-3.1-8b-fp16"), ("int4", "apple-llama-3.1-8b-int4")):
        row = by_id[name]
        share = row["bytes"] / (row["gb_s"] * 1e9) * row["decode_tokens_s"]
        assert roofline.DECODE[("coreml", precision)].share == pytest.approx(share, rel=0.005)
    thor = by_id["tel24-thor-qwen2.5-vl-3b-fp16"]
    took = thor["prefill_ms"] - roofline.LAUNCH_US["jetson"] * thor["layers"] / 1e3
    share = thor["flops"] / (thor["peak"] * 1e9 * took)
    assert roofline.PREFILL[("jetson", "11.0", None)].share == pytest.approx(share, rel=0.02)


def test_a_jetsons_runtime_is_what_published_peaks_leave(bench, rows, document):
    left = bench.memory_left(rows, document)
    assert len(left["left"]) == 6
    assert fit.RUNTIME["jetson"] == pytest.approx(left["median"], rel=0.03)


def test_the_smallest_fitted_model_bounds_what_is_not_extrapolated(document):
    sizes = [
        m["layers"]
        * (2 * m["hidden"] * m["head_dim"] * (m["heads"] + m["kv_heads"]) + 3 * m["hidden"] * m["ffn"])
        for m in document["models"].values()
    ]
    assert 0.8 * min(sizes) <= roofline.SMALLEST <= min(sizes)
