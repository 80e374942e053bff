"""Benchmarks for real, on the small bundle: in processes of their own, to the end or to Ctrl-C."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pulse_edge import commands
from pulse_edge.errors import BundleError, PulseEdgeError, UserError
from pulse_edge.runtimes.bench.measure import measure_page, work
from pulse_edge.runtimes.bench.result import METRICS, read_result


def test_a_page_is_read_anew_and_the_answer_has_its_length(bundled, pages) -> None:
    calls = {"encode": 0, "step": 0}
    for name in calls:
        inner = getattr(bundled.backend, name)

        def count(*args, name=name, inner=inner):
            calls[name] += 1
            return inner(*args)

        setattr(bundled.backend, name, count)
    bundled.tokenizer.eos_id = int(bundled.logits(pages["page"], "x").argmax())  # it does not end the work
    calls["encode"] = 0
    events = list(work(lambda: bundled, pages["page"], 7, 1, 2))
    assert [event["event"] for event in events] == ["open", "run", "run", "end"]
    assert calls == {"encode": 3, "step": 21}
    for run in events[1:3]:
        assert run["tokens"] == 7
        assert run["start"] < run["decode_start"] < run["end"]
        assert run["ttft"] >= run["preprocess"] + run["vision"] + run["prefill"] - 1
        assert run["tokens_per_s"] > 0
        assert min(run["followup"], run["labels"]) > 0
    room = bundled.backend.context
    assert measure_page(bundled, pages["wide"], 10_000)["tokens"] < room


def test_time_ends_the_work_too(bundled, pages, monkeypatch) -> None:
    now = itertools.count(0, 0.1)  # read once before each page and three times in it
    clock = SimpleNamespace(monotonic=lambda: next(now), perf_counter=time.perf_counter)
    monkeypatch.setattr("pulse_edge.runtimes.bench.measure.time", clock)
    events = list(work(lambda: bundled, pages["wide"], 2, 0, 1, seconds=1.0))
    assert [event["event"] for event in events] == ["open", "run", "run", "run", "end"]


def test_the_peak_of_memory_is_the_process_s_own() -> None:
    """A child that is forked from a large parent would inherit its peak in getrusage."""
    ballast = np.ones(60_000_000)  # 480 MB
    script = "from pulse_edge.runtimes.bench.measure import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 5 < float(done.stdout) < 350
    assert ballast[0] == 1


def test_a_benchmark_and_its_comparison(small_bundle, tmp_path) -> None:
    steps, ticks = [], []
    result = commands.bench(
        str(small_bundle), runs=2, processes=2, tokens=4,
        output=tmp_path / "a.json", picture=tmp_path / "a.png",
        report=steps.append, tick=lambda done, total: ticks.append((done, total)),
    )  # fmt: skip
    assert json.loads(json.dumps(result)) == read_result(tmp_path / "a.json")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert set(result["metrics"]) == set(METRICS)
    assert [len(part) for part in result["metrics"]["ttft"]["values"]] == [2, 2]
    assert result["model"]["digest"] == json.loads((small_bundle / "manifest.json").read_text())["digest"]
    assert result["energy"]["source"] or result["energy"]["reason"]
    assert ticks[-1] == (4, 4)
    assert steps == ["measuring"]
    compared = commands.bench(compare=(tmp_path / "a.json", tmp_path / "a.json"))
    assert {row["ratio"] for row in compared["metrics"].values()} == {1.0}


def test_what_cannot_be_measured_is_named_before_or_by_the_process(own_bundle, tmp_path) -> None:
    with pytest.raises(UserError, match="MODEL"):
        commands.bench()
    with pytest.raises(UserError, match="Leave the model"):
        commands.bench("pulse-nano", compare=(tmp_path, tmp_path))
    for wrong in ({"runs": 0}, {"tokens": 0}, {"processes": 0}, {"sustained": 0.0}):
        with pytest.raises(UserError, match="must be"):
            commands.bench("pulse-nano", **wrong)
    with pytest.raises(UserError, match="no folder"):
        commands.bench(str(own_bundle), output=tmp_path / "none" / "a.json")
    graph = next(own_bundle.glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(UserError, match="not sound"):
        commands.bench(str(own_bundle), runs=1, processes=1)
    (own_bundle / "manifest.json").write_text("{}")
    with pytest.raises(BundleError):
        commands.bench(str(own_bundle))


def test_a_process_that_is_killed_is_named(small_bundle, tmp_path, monkeypatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(PulseEdgeError, match=r"without a result \(exit code -9\).*pulse-edge plan"):
        commands.bench(str(small_bundle), runs=1, processes=1)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="it looks for the process in /proc")
def test_ctrl_c_ends_a_long_run_and_keeps_what_was_measured(small_bundle, tmp_path) -> None:
    result, started = tmp_path / "long.json", time.monotonic()
    command = [
        sys.executable, "-m", "pulse_edge.cli", "bench", small_bundle, "--runs", "1", "--processes", "1",
        "--tokens", "2", "--sustained", "600", "--output", result, "--json",
        "--picture", tmp_path / "long.png",
    ]  # fmt: skip
    watch = tmp_path / "seen"
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with watch.open("w") as told:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=told, text=True, env=env,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while not _sustaining(small_bundle) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of its processes
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, watch.read_text()
    found = json.loads(out)
    assert found["sustained"]["interrupted"] is True
    assert found["sustained"]["seconds"] < time.monotonic() - started
    assert json.loads(result.read_text()) == found
    assert (tmp_path / "long.png").is_file()


def _sustaining(model: Path) -> bool:
    """Whether a process measures the model for 600 seconds: its command line says so."""
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            text = place.read_bytes().decode(errors="replace")
            if '"seconds": 600' in text and str(model) in text:
                return True
    return False
