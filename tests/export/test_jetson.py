"""What is written for a Jetson: profiles that run, and a script that says the same."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from pulse_edge.export.jetson import KINDS, bounded, profiles
from pulse_edge.export.shape import DecoderShape
from pulse_edge.fit import ROOM

PULSE_7B = DecoderShape(32, 4096, 32, 32, 128, 32000, 4096, 1e4, 1e-5)


@pytest.fixture(scope="module")
def plan(bundle):
    return json.loads((bundle("jetson", "fp16") / "build/profiles.json").read_text())


def shapes_of(plan):
    return [
        (graph, use, kind, {name: shapes[kind] for name, shapes in profile.items()})
        for graph, uses in plan.items()
        for use, profile in uses.items()
        for kind in KINDS
    ]


def test_every_shape_of_every_profile_runs(bundle, plan):
    folder = bundle("jetson", "fp16")
    sessions = {
        graph: onnxruntime.InferenceSession(str(folder / f"{graph}.onnx"), providers=["CPUExecutionProvider"])
        for graph in plan
    }
    rng = np.random.default_rng(0)
    seen = shapes_of(plan)
    assert len(seen) == 3 * (1 + 3)
    for graph, use, kind, shapes in seen:
        session = sessions[graph]
        assert set(shapes) == {entry.name for entry in session.get_inputs()}
        feed = {}
        for entry in session.get_inputs():
            dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
            feed[entry.name] = rng.integers(0, 2, shapes[entry.name]).astype(dtype[entry.type])
        for result in session.run(None, feed):
            assert np.isfinite(result).all(), (graph, use, kind)


@pytest.mark.parametrize(
    ("shape", "tokens"),
    [(PULSE_7B, 576), (DecoderShape(4, 192, 6, 2, 32, 768, 1024, 1e4, 1e-5), 49),
     (DecoderShape(1, 8, 1, 1, 8, 9, 260, 1e4, 1e-5), 49)],
)  # fmt: skip
def test_profiles_are_ordered_and_fit_the_context(shape, tokens):
    plan = profiles(shape, tokens)
    for uses in plan.values():
        for profile in uses.values():
            for shapes in profile.values():
                for low, best, high in zip(*(shapes[kind] for kind in KINDS), strict=True):
                    assert 0 <= low <= best <= high
    lengths = {}
    for _, use, kind, shapes in shapes_of({"decoder": plan["decoder"]}):
        past = shapes["past_key_values.0.key"][2]
        assert shapes["inputs_embeds"][1] + past <= shape.context
        lengths[use, kind] = (shapes["inputs_embeds"][1], past)
    assert lengths["prompt", "min"] == (1, 0)
    assert lengths["prompt", "max"] == (shape.context, 0)  # any prompt can be read
    assert lengths["token", "max"] == (1, shape.context - 1)  # and answered to the end of the context
    assert lengths["question", "max"][0] > 1


def test_the_script_asks_trtexec_for_exactly_these_profiles(bundle, plan, tmp_path):
    """Run the script with a stand-in for trtexec that writes down what it was asked for."""
    folder = bundle("jetson", "fp16")
    log, fake = tmp_path / "log", tmp_path / "trtexec"
    fake.write_text(f'#!/bin/sh\nfor word in "$@"; do echo "$word" >> {log}; done\necho -- >> {log}\n')
    fake.chmod(0o755)
    copy = tmp_path / "copy"
    (copy / "build").mkdir(parents=True)
    (copy / "build/build.sh").write_text((folder / "build/build.sh").read_text())
    subprocess.run(
        ["sh", "build/build.sh"], cwd=copy, env={"TRTEXEC": str(fake), "PATH": "/usr/bin:/bin"}, check=True
    )
    calls = [call.split() for call in log.read_text().split("--\n") if call]
    assert [call[0] for call in calls] == [f"--onnx={g}.onnx" for g in ("vision", "embed", "decoder")]
    assert (copy / "engines").is_dir()
    for call, graph in zip(calls, ("vision", "embed", "decoder"), strict=True):
        assert "--stronglyTyped" in call
        assert (folder / call[0].removeprefix("--onnx=")).is_file()
        asked, current = {}, None
        for word in call:
            if match := re.fullmatch(r"--profile=(\d)", word):
                current = asked.setdefault(list(plan[graph])[int(match[1])], {})
            elif match := re.fullmatch(r"--(min|opt|max)Shapes=(.*)", word):
                for entry in match[2].split(","):
                    name, dims = entry.split(":")
                    current.setdefault(name, {})[match[1]] = [int(d) for d in dims.split("x")]
        assert asked == plan.get(graph, {})
    assert (folder / "build/build.sh").stat().st_mode & 0o111


def test_the_readme_of_the_build_says_what_was_not_done(bundle):
    text = (bundle("jetson", "fp16") / "build/README.md").read_text()
    assert "Jetson Orin Nano 8 GB" in text
    assert "not run on hardware" in text


def test_a_boards_cache_is_as_long_as_the_fit_counts() -> None:
    """PULSE-7B reads 4,096 tokens; a page and a conversation about it have 3,392."""
    assert bounded(PULSE_7B, 576).context == 5 * 576 + ROOM == 3392
    assert bounded(replace(PULSE_7B, context=1000), 576).context == 1000
