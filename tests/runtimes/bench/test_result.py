"""Medians with their spread, comparing two results, and the curve of a long run."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pulse_edge.errors import UserError
from pulse_edge.runtimes.bench.picture import draw_result
from pulse_edge.runtimes.bench.result import KIND, METRICS, compare, read_result, summarise
from pulse_edge.runtimes.bench.sensors import Sample
from pulse_edge.runtimes.bench.sustained import POINTS, curve


def _events(seed: int, factor: float = 1.0, noise: float = 0.02, runs: int = 6, processes: int = 3) -> list:
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(processes):
        drift = draw.normal(1, noise)  # a process is slower or faster as a whole
        part: list[dict] = [{"event": "open", "ms": 100.0, "runtime": "x"}]
        for _ in range(runs):
            ms = 50 * factor * drift * draw.normal(1, noise)
            part.append({"event": "run", **dict.fromkeys(METRICS, ms), "tokens_per_s": 1e4 / ms})
        made.append([*part, {"event": "end", "peak_mb": 200.0 * factor}])
    return made


def _result(events, **machine) -> dict:
    return {"kind": KIND, "schema": 1, "machine": machine, "metrics": summarise(events)}


def test_medians_and_quartiles_are_numpy_s() -> None:
    events = _events(0)
    found = summarise(events)
    assert list(found) == list(METRICS)
    values = [event["ttft"] for part in events for event in part if event["event"] == "run"]
    assert found["ttft"]["median"] == pytest.approx(np.median(values))
    assert [found["ttft"][key] for key in ("low", "high")] == pytest.approx(
        list(np.percentile(values, [25, 75]))
    )
    assert (found["ttft"]["min"], found["ttft"]["max"]) == (min(values), max(values))
    assert found["peak_mb"]["values"] == [[200.0]] * 3
    assert [len(part) for part in found["vision"]["values"]] == [6, 6, 6]


def test_a_real_difference_is_found_and_noise_is_not_taken_for_one() -> None:
    plain = [_result(_events(seed)) for seed in range(20)]
    same = [compare(plain[k], plain[k + 1])["metrics"] for k in range(0, 20, 2)]
    taken = [
        row["verdict"] for rows in same for row in rows.values() if row["verdict"] not in ("noise", "one run")
    ]
    assert len(taken) <= 18  # of 90, and the six of a run move together
    faster = compare(plain[0], _result(_events(99, factor=0.7)))["metrics"]
    assert faster["ttft"]["ratio"] == pytest.approx(0.7, abs=0.05)
    low, high = faster["ttft"]["interval"]
    assert low < faster["ttft"]["ratio"] < high < 1
    assert faster["ttft"]["verdict"] == "better"
    assert faster["tokens_per_s"]["verdict"] == "better"
    assert faster["tokens_per_s"]["ratio"] > 1
    slower = compare(_result(_events(99, factor=0.7)), plain[0])["metrics"]
    assert slower["ttft"]["verdict"] == slower["tokens_per_s"]["verdict"] == "worse"


def test_a_result_compared_with_itself_is_no_difference() -> None:
    found = _result(_events(3), cpu="a", cores=2, load_1min=1.0)
    rows = compare(found, found)
    assert all(row["ratio"] == 1 and row["verdict"] == "noise" for row in rows["metrics"].values())
    assert rows["machines_differ"] == []
    other = {**found, "machine": {"cpu": "b", "cores": 2, "load_1min": 9.0}}
    assert compare(found, other)["machines_differ"] == ["cpu"]
    single = _result(_events(3, runs=1, processes=1))
    assert {row["verdict"] for row in compare(single, single)["metrics"].values()} == {"one run"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["values", "ttft", "x"]), inner)
        ),
        max_leaves=8,
    )
)
def test_files_that_are_no_result_are_refused(tmp_path_factory, document) -> None:
    path = tmp_path_factory.mktemp("r") / "r.json"
    path.write_text(json.dumps({"kind": KIND, "schema": 1, "metrics": document}))
    try:
        found = read_result(path)
    except UserError:
        return
    compare(found, found)  # what is read can be compared


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "other", "schema": 1}', "\udcff", "{" * 99999])
def test_other_files_are_refused(text, tmp_path) -> None:
    (tmp_path / "r.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="bench"):
        read_result(tmp_path / "r.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_result(tmp_path / "missing.json")


def _long_run(seconds: int, falls_at: int | None) -> list[dict]:
    runs, at = [], 1000.0
    while at < 1000 + seconds:
        speed = 60.0 if falls_at is not None and at - 1000 >= falls_at else 100.0
        lasts = 50 / speed
        runs.append({"start": at, "end": at + lasts, "tokens_per_s": speed, "ttft": 1e4 / speed})
        at += lasts + 0.01
    return runs


def test_a_machine_that_gets_hot_is_seen_to_slow_down() -> None:
    runs = _long_run(600, falls_at=300)
    samples = [Sample(1000 + t, 20.0 * t, 40 + t / 10, 1500 - t, None, None) for t in range(601)]
    found = curve(runs, samples, 600)
    assert (found["begin"], found["end"]) == (100, 60)
    assert found["kept"] == pytest.approx(0.6)
    assert found["throttled"] is True
    assert found["hottest"] == 100
    shown = found["curve"]
    assert len({len(column) for column in shown.values()}) == 1
    assert len(shown["t"]) <= POINTS
    assert shown["tokens_per_s"][0] == 100
    assert shown["tokens_per_s"][-1] == 60
    assert shown["watts"] == pytest.approx([20.0] * len(shown["t"]))
    assert set(shown["gpu_mhz"]) == {None}
    assert shown["temperature"] == sorted(shown["temperature"])
    cool = curve(_long_run(60, None), [], 600)
    assert (cool["kept"], cool["throttled"], cool["hottest"]) == (1.0, False, None)
    assert curve([], samples, 600)["pages"] == 0
    assert curve(runs[:1], samples, 600)["kept"] == 1.0


def test_the_picture_is_one_with_a_panel_for_all_that_was_told() -> None:
    result = {**_result(_events(1)), "model": {"name": "m"}, "runtime": "x", "sustained": None}
    plain = cv2.imdecode(np.frombuffer(draw_result(result), np.uint8), cv2.IMREAD_COLOR)
    samples = [Sample(1000 + t, 20.0 * t, 40 + t / 10, 1500 - t, None, None) for t in range(61)]
    result["sustained"] = curve(_long_run(60, 30), samples, 60)
    hot = cv2.imdecode(np.frombuffer(draw_result(result), np.uint8), cv2.IMREAD_COLOR)
    assert hot.shape[0] == 3 * plain.shape[0]  # speed, temperature, CPU clock, power; no GPU clock
    assert (plain < 200).any()
