"""The published speeds: sourced, split as stated, and reproduced within what was asked."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import sys

import pytest

from pulse_edge import fit, roofline
from pulse_edge.device import CONFIDENCE, list_devices, load_device

QUANTITIES = ("decode", "prefill", "vision")


@pytest.fixture(scope="module")
def bench(root):
    """benchmarks/plan.py, imported as it runs: with its neighbours on the path."""
    sys.path.insert(0, str(root / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_plan", root / "benchmarks" / "plan.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.roofline_fit = importlib.import_module("roofline_fit")
        yield module
    finally:
        sys.path.remove(str(root / "benchmarks"))


@pytest.fixture(scope="module")
def rows(bench):
    return bench.load()[0]


@pytest.fixture(scope="module")
def newer(bench):
    """The rows of the newer release, whose fit `plan` uses."""
    return bench.load()[1]["newer"]


@pytest.fixture(scope="module")
def document(root):
    return json.loads((root / "benchmarks" / "data" / "published_speed.json").read_text())


def test_every_row_says_where_it_comes_from(document):
    every = [*document["rows"], *document["newer"], *document["later"]]
    assert len({row["id"] for row in every}) == len(every) > 90
    for row in every:
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
@pytest.mark.parametrize("which", ["rows", "newer"])
def test_the_split_is_the_stated_one(bench, request, which, quantity):
    """Written again from the words of the data file."""
    rows = request.getfixturevalue(which)
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
    fitted, tested = bench.roofline_fit.split(rows, quantity)
    assert [row["id"] for row in fitted] == [row["id"] for row in mine[::2]]
    assert [row["id"] for row in tested] == [row["id"] for row in mine[1::2]]
    assert 0 <= len(fitted) - len(tested) <= 1


def test_the_fit_never_sees_the_tested_rows(bench, rows):
    changed = copy.deepcopy(rows)
    tested = {row["id"] for row in bench.roofline_fit.split(rows, "decode")[1]}
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


@pytest.mark.parametrize("which", ["rows", "newer"])
def test_held_out_errors_are_within_what_was_asked(bench, request, which):
    tested = bench.evaluate(request.getfixturevalue(which))["tested"]
    assert tested["decode"]["test_median_error"] <= 0.15
    assert tested["prefill"]["test_median_error"] <= 0.30
    assert tested["decode"]["test_rows"] >= 15
    assert tested["prefill"]["test_rows"] >= 10


def test_rows_that_the_first_fit_could_not_know_are_near_where_they_should_be(bench, rows, newer):
    """On Orin; Thor's kernels have become faster, which the committed result says."""
    found = bench.unseen(newer, bench.evaluate(rows)["fitted"])["median_error"]
    assert found["decode tensorrt-edge-llm"]["median_error"] <= 0.15
    assert found["decode tensorrt-edge-llm"]["rows"] == 32
    assert found["prefill tensorrt-edge-llm 8.7 int4-g128"]["median_error"] <= 0.30
    assert found["prefill tensorrt-edge-llm 11.0 int4-g128"]["median_error"] > 0.30


@pytest.mark.parametrize("which", ["rows", "newer"])
def test_the_committed_result_is_what_the_command_computes(root, bench, request, which):
    kept = json.loads((root / "benchmarks" / "results" / "plan.json").read_text())[which]
    found = bench.evaluate(request.getfixturevalue(which))
    for quantity in QUANTITIES:
        assert kept["tested"][quantity] == pytest.approx(found["tested"][quantity])
    lines = bench.table(found)
    assert [row["id"] for row in kept["table"]] == [row["id"] for row in lines]
    for row, line in zip(kept["table"], lines, strict=True):
        assert row["predicted"] == pytest.approx(line["predicted"], abs=0.02)


def test_plan_uses_the_rates_that_were_fitted(bench, newer):
    fitted = bench.evaluate(newer)["fitted"]
    decode = fitted["decode"]["tensorrt-edge-llm"]
    assert roofline.DECODE[("jetson", None)].share == pytest.approx(decode["share"], rel=0.005)
    assert roofline.LAUNCH_US["jetson"] == pytest.approx(decode["launch_us"], rel=0.005)
    for key, name in (
        (("jetson", "8.7", "int4"), "tensorrt-edge-llm 8.7 int4-g128"),
        (("jetson", "11.0", "int4"), "tensorrt-edge-llm 11.0 int4-g128"),
        (("jetson", "11.0", "nvfp4"), "tensorrt-edge-llm 11.0 nvfp4"),
    ):
        assert roofline.PREFILL[key].share == pytest.approx(fitted["prefill"][name]["share"], rel=0.01)
    for sm in ("8.7", "11.0"):
        share = fitted["vision"][f"tensorrt-edge-llm {sm}"]["share"]
        assert roofline.VISION[("jetson", sm)].share == pytest.approx(share, rel=0.01)


def test_no_band_is_narrower_than_what_random_splits_show(root):
    bands = json.loads((root / "benchmarks" / "results" / "plan.json").read_text())["robustness"]["newer"][
        "band"
    ]
    used = {
        "decode tensorrt-edge-llm": roofline.DECODE[("jetson", None)],
        "prefill tensorrt-edge-llm 8.7 int4-g128": roofline.PREFILL[("jetson", "8.7", "int4")],
        "prefill tensorrt-edge-llm 11.0 int4-g128": roofline.PREFILL[("jetson", "11.0", "int4")],
        "prefill tensorrt-edge-llm 11.0 nvfp4": roofline.PREFILL[("jetson", "11.0", "nvfp4")],
        "vision tensorrt-edge-llm 8.7": roofline.VISION[("jetson", "8.7")],
        "vision tensorrt-edge-llm 11.0": roofline.VISION[("jetson", "11.0")],
    }
    assert set(used) == set(bands)
    assert not {name: band for name, band in bands.items() if used[name].band < band}


def test_single_rows_that_plan_uses_give_their_shares(bench):
    """Apple's two rows, one for each precision, the only fp16 prefill of Thor, llama.cpp's on a Mac."""
    rows, document = bench.load()
    by_id = {row["id"]: row for row in [*rows, *document["later"]]}
    mac = by_id["gguf-m1-max-llama-3.1-8b"]
    share = mac["flops"] / (mac["peak"] * 1e9 * mac["prefill_ms"])
    used = roofline.rates(load_device("mac-m1-max"), fit.Setup(target="coreml"))[1]
    assert used.share == pytest.approx(share, rel=0.01)
    for precision, name in (("fp16", "apple-llama-3.1-8b-fp16"), ("int4", "apple-llama-3.1-8b-int4")):
        row = by_id[name]
        share = row["bytes"] / (row["gb_s"] * 1e9) * row["decode_tokens_s"]
        assert roofline.DECODE[("coreml", precision)].share == pytest.approx(share, rel=0.005)
    thor = by_id["tel24-thor-qwen2.5-vl-3b-fp16"]
    took = thor["prefill_ms"] - roofline.LAUNCH_US["jetson"] * thor["layers"] / 1e3
    share = thor["flops"] / (thor["peak"] * 1e9 * took)
    assert roofline.PREFILL[("jetson", "11.0", None)].share == pytest.approx(share, rel=0.02)


def test_a_jetsons_runtime_lies_between_what_published_peaks_leave(bench, newer, document):
    left = bench.memory_left(newer, document)
    assert [len(rows) for rows in left["left"].values()] == [10, 7]
    assert left["median"]["language"] < fit.RUNTIME["jetson"] < left["median"]["vision"]


def test_the_smallest_fitted_model_bounds_what_is_not_extrapolated(document):
    sizes = [
        m["layers"]
        * (2 * m["hidden"] * m["head_dim"] * (m["heads"] + m["kv_heads"]) + 3 * m["hidden"] * m["ffn"])
        for m in document["models"].values()
    ]
    assert 0.8 * min(sizes) <= roofline.SMALLEST <= min(sizes)
