"""Whole exports: what a bundle holds, that it is all or nothing, and that it is the same every time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pulse_edge.bundle import read_manifest, verify_bundle
from pulse_edge.errors import GateError, MissingExtraError, PulseEdgeError, UnknownNameError, UserError
from pulse_edge.export import export_bundle, exporter, trt_tables
from pulse_edge.model.preprocess import preprocess
from pulse_edge.runtimes.onnx import OnnxBackend


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("target", "precision", "types"),
    [
        ("onnx", "fp32", {"vision": "fp32", "embed": "fp32", "decoder": "fp32", "lm_head": "fp32"}),
        ("jetson", "fp16", {"vision": "fp16", "embed": "fp16", "decoder": "fp16", "lm_head": "fp16"}),
        ("jetson", "int4", {"vision": "fp16", "embed": "fp16", "decoder": "int4", "lm_head": "fp16"}),
    ],
)
def test_a_bundle_is_complete_and_says_what_is_in_it(bundle, target, precision, types):
    folder = bundle(target, precision)
    assert verify_bundle(folder) == []
    manifest = read_manifest(folder)
    kept = [f"layers.{i}.mlp.down_proj" for i in range(2)] if precision == "int4" else []
    profile = "ort" if target == "onnx" else "trt"
    assert manifest["precision"] == {**types, "decoder_kept_fp16": kept, "decoder_profile": profile}
    assert manifest["model"]["name"] == "student"
    assert manifest["target"] == target
    assert manifest["accuracy"][0]["stage"] == "student"
    assert manifest["preprocessing"]["tokens_per_tile"] == 49
    assert manifest["generation"]["context"] == 400
    assert list(manifest["labels"]) == ["NORM", "MI", "STTC", "CD", "HYP"]
    half = "float16" if target == "jetson" else "float"
    graphs = manifest["graphs"]
    assert graphs["vision"]["inputs"] == {"pixel_values": {"dtype": "float", "shape": [5, 3, 336, 336]}}
    assert graphs["vision"]["outputs"] == {"image_features": {"dtype": "float", "shape": [5, 49, 64]}}
    assert graphs["embed"]["outputs"]["inputs_embeds"] == {"dtype": "float", "shape": [1, "S", 64]}
    assert graphs["decoder"]["inputs"]["past_key_values.1.key"] == {"dtype": half, "shape": [1, 2, "P", 16]}
    assert graphs["decoder"]["outputs"]["logits"] == {"dtype": "float", "shape": [1, 400]}
    assert (folder / "tokenizer.model").is_file()
    assert ((folder / "build").is_dir()) == (target == "jetson")
    if target == "jetson":
        assert manifest["device"]["profile"] == "orin-nano-8gb"
        assert manifest["device"]["constraints"]["sm"] == "8.7"


def test_int4_is_smaller_than_fp16_than_fp32(bundle):
    sizes = [
        (bundle(*key) / "decoder.onnx.data").stat().st_size
        for key in (("onnx", "fp32"), ("jetson", "fp16"), ("jetson", "int4"))
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_another_process_writes_the_same_bytes(bundle, checkpoint, tmp_path):
    script = (
        "import sys; from pathlib import Path; from pulse_edge.export import export_bundle;"
        "export_bundle(Path(sys.argv[1]), Path(sys.argv[2]), 'jetson', precision='int4')"
    )
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    folder = tmp_path / "again"
    subprocess.run(
        [sys.executable, "-c", script, str(checkpoint), str(folder)], check=True, env=env, cwd=tmp_path
    )
    assert hashes(folder) == hashes(bundle("jetson", "int4"))


@pytest.mark.parametrize("name", ["pulse_tiny_flat", "pulse_tiny_spatial_unpad"])
def test_the_golden_checkpoints_answer_as_pulse_does(shared, tmp_path, name):
    """Logits to 1e-3 and the same 24 tokens as the reference code, image and all."""
    golden = shared / "golden"
    export_bundle(golden / "model" / name, tmp_path / "bundle", "onnx", precision="fp32")
    backend = OnnxBackend(tmp_path / "bundle", read_manifest(tmp_path / "bundle"), threads=1)
    cases = json.loads((golden / "model/gold.json").read_text())[name]["cases"]
    checked = 0
    for case in cases:
        stored = golden / "model" / f"{name}__{case['case']}.npz"
        if not stored.exists():
            continue
        with Image.open(golden / "preprocess/images" / case["image"]) as image:
            tiles, size = preprocess(image), image.size
        with np.load(stored) as arrays:
            logits = backend.prefill(backend.encode(tiles, size), case["input_ids"])
            assert np.abs(logits - arrays["logits_last"]).max() < 1e-3
            tokens = []
            for expected in arrays["greedy_step_logits"]:
                assert np.abs(logits - expected).max() < 1e-3
                tokens.append(int(logits.argmax()))
                logits = backend.step(tokens[-1])
            assert tokens == arrays["greedy_tokens"].tolist() == case["greedy_tokens_fp32"]
        checked += 1
    assert checked >= 2


@pytest.fixture
def quick(bundle, monkeypatch):
    """Take the vision graph from an earlier export: these tests are about what happens around it."""

    def copy(path, checkpoint, half):
        source = bundle(*(("jetson", "fp16") if half else ("onnx", "fp32")))
        for suffix in ("", ".data"):
            shutil.copyfile(source / f"vision.onnx{suffix}", path.with_name(path.name + suffix))

    bundle("onnx", "fp32")
    bundle("jetson", "fp16")
    monkeypatch.setattr(exporter, "write_vision", copy)


def test_the_gate_sees_the_whole_bundle_before_it_has_its_name(quick, checkpoint, tmp_path):
    seen = []

    def gate(folder, precision):
        seen.append((verify_bundle(folder), precision, (tmp_path / "out").exists()))
        return {"logits_max_abs": 0.5}

    manifest = export_bundle(checkpoint, tmp_path / "out", "onnx", gate=gate)
    assert seen == [([], "fp32", False)]
    assert manifest == read_manifest(tmp_path / "out")
    assert manifest["parity"] == {"logits_max_abs": 0.5}
    assert manifest["accuracy"][-1] == {"stage": "bundle", "parity": {"logits_max_abs": 0.5}}
    assert verify_bundle(tmp_path / "out") == []


@pytest.mark.parametrize("error", [GateError("no"), KeyboardInterrupt(), RuntimeError("bug")])
def test_a_bundle_that_fails_its_gate_is_not_left_behind(quick, checkpoint, tmp_path, error):
    def gate(folder, precision):
        raise error

    with pytest.raises(type(error)):
        export_bundle(checkpoint, tmp_path / "out", "onnx", gate=gate)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_an_older_bundle_alone(quick, bundle, checkpoint, tmp_path):
    shutil.copytree(bundle("onnx", "fp32"), tmp_path / "out")
    before = hashes(tmp_path / "out")

    def gate(folder, precision):
        raise GateError("no")

    with pytest.raises(GateError):
        export_bundle(checkpoint, tmp_path / "out", "onnx", precision="int8", gate=gate)
    assert hashes(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_at_any_step_leaves_nothing(quick, checkpoint, tmp_path):
    steps = []
    export_bundle(checkpoint, tmp_path / "whole", "jetson", report=steps.append)
    shutil.rmtree(tmp_path / "whole")
    assert len(steps) >= 4
    for stop in steps:

        def report(step, stop=stop):
            if step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export_bundle(checkpoint, tmp_path / "out", "jetson", report=report)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [20_000, 120_000], ids=["vision", "decoder"])
def test_a_full_disk_leaves_nothing_and_says_so(checkpoint, tmp_path, limit):
    """The limit of a file's size stands for the disk's end: writing fails in the same place."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(PulseEdgeError, match=r"disk of .* is full; nothing was left") as caught:
            export_bundle(checkpoint, tmp_path / "out", "onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.__cause__.errno in (errno.EFBIG, errno.ENOSPC)
    assert list(tmp_path.iterdir()) == []


def test_what_tensorrt_does_not_document_is_not_exported(quick, checkpoint, tmp_path, monkeypatch):
    monkeypatch.delitem(trt_tables.OPERATORS, "Softmax")
    with pytest.raises(GateError, match=r"decoder\.onnx: node 'layers\.0\.self_attn\.softmax' \(Softmax\)"):
        export_bundle(checkpoint, tmp_path / "out", "jetson")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"target": "jetsn"}, UnknownNameError, "Did you mean 'jetson'"),
        ({"precision": "fp17"}, UnknownNameError, "Unknown precision 'fp17'"),
        ({"device": "orin-nano"}, UnknownNameError, "Did you mean 'orin-nano-"),
        ({"device": "x86-cpu"}, UserError, "the target jetson is for jetson"),
        ({"precision": "fp32"}, UserError, "Use --precision fp16"),
    ],
)
def test_wrong_choices_are_refused_before_anything_is_read(tmp_path, options, error, sentence):
    with pytest.raises(error, match=sentence):
        export_bundle(Path("nowhere"), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pulse-edge\[export\]"):
        export_bundle(Path("nowhere"), tmp_path / "out")
