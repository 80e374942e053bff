"""Streamed exports: the same from every layout and every time, and what is not sound is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from pulse_edge.bundle import read_manifest, verify_bundle
from pulse_edge.errors import CheckpointError, PulseEdgeError, UserError
from pulse_edge.export import export_bundle, preview, stream
from pulse_edge.export.source import Source
from pulse_edge.model.checkpoint import load_model
from pulse_edge.model.layouts import canonical
from pulse_edge.model.quantized import QuantizedWeight
from pulse_edge.model.reference import TorchBackend
from pulse_edge.runtimes.onnx import OnnxBackend


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def llava(clip_checkpoint, tmp_path_factory):
    return clip_checkpoint(tmp_path_factory.mktemp("llava") / "checkpoint")


@pytest.fixture(scope="module")
def hugging_face(clip_checkpoint, tmp_path_factory):
    return clip_checkpoint(tmp_path_factory.mktemp("hf") / "checkpoint", "hf")


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_layouts_do_not_show_and_two_exports_are_the_same(llava, hugging_face, tmp_path, precision) -> None:
    for name, checkpoint in (("a", llava), ("b", llava), ("c", hugging_face)):
        export_bundle(checkpoint, tmp_path / name, "jetson", precision=precision)
        assert verify_bundle(tmp_path / name) == []
    first, again, other = (hashes(tmp_path / name) for name in "abc")
    assert first == again  # the manifest too: it holds no time and no place
    names = {"manifest.json"}
    assert {k: v for k, v in first.items() if k not in names} == {
        k: v for k, v in other.items() if k not in names
    }


@pytest.mark.parametrize(("target", "precision"), [("onnx", "fp32"), ("jetson", "fp16")])
def test_the_bundle_answers_as_the_checkpoint_does(llava, tmp_path, target, precision) -> None:
    """The hand-built vision graph and decoder against PyTorch, which reads the checkpoint in its own way."""
    export_bundle(llava, tmp_path / "bundle", target, precision=precision)
    ours = OnnxBackend(tmp_path / "bundle", read_manifest(tmp_path / "bundle"), threads=1)
    theirs = TorchBackend(load_model(llava, "float32"))
    tiles = np.random.default_rng(1).normal(size=(5, 3, 336, 336)).astype(np.float32)
    bound = 1e-5 if precision == "fp32" else 5e-3
    a, b = theirs.encode(tiles, (800, 600)), ours.encode(tiles, (800, 600))
    assert a.shape == (5 * 36, 128)
    assert np.abs(a - b).max() < bound * np.ptp(a)
    ids = [1, 30, 40, -200, 50, 60]
    a, b = theirs.prefill(a, ids), ours.prefill(b, ids)
    for token in (7, 8, 9):
        assert np.abs(a - b).max() < bound * np.ptp(a)
        a, b = theirs.step(token), ours.step(token)


def test_torch_onnx_would_compute_the_same_features(llava, tmp_path) -> None:
    """The hand-built graph stands in for torch.onnx's, which remains for other towers."""
    from pulse_edge.export.graphs import write_vision

    export_bundle(llava, tmp_path / "bundle", "onnx", precision="fp32")
    write_vision(tmp_path / "traced.onnx", load_model(llava), half=False)
    tiles = np.random.default_rng(2).normal(size=(5, 3, 336, 336)).astype(np.float32)
    ours, theirs = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
            ["image_features"], {"pixel_values": tiles}
        )[0]
        for path in (tmp_path / "bundle/vision.onnx", tmp_path / "traced.onnx")
    )
    assert np.abs(ours - theirs).max() < 1e-5 * np.ptp(theirs)


def test_what_is_expected_of_a_checkpoint_is_what_transformers_builds(clip_model, llava) -> None:
    shapes = {canonical(name): tuple(value.shape) for name, value in clip_model.state_dict().items()}
    expected = dict(Source(llava)._expected())
    assert expected == {name: shape for name, shape in shapes.items() if name in expected}
    assert shapes.keys() - expected.keys() <= {"newline", "vision.embeddings.position_ids"}


def test_a_tied_models_table_lies_on_disk_once(bundle, stored) -> None:
    folder = bundle("jetson", "fp16")
    table = stored(folder / "embed.onnx")["embed_tokens.weight"]
    np.testing.assert_array_equal(stored(folder / "decoder.onnx")["embed_tokens.weight"], table)
    assert "lm_head" not in {name.partition(".")[0] for name in stored(folder / "decoder.onnx")}
    assert (folder / "embed.onnx.data").read_bytes() == table.tobytes()  # a runtime may map it as it is


def damaged(folder, fault):
    """Damage a checkpoint of Hugging Face's layout in one way."""
    file = folder / "model.safetensors"
    state = load_file(file)
    text = "model.language_model."
    if fault == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
        return
    if fault == "too long":
        file.write_bytes(file.read_bytes() + b"\0" * 8)
        return
    if fault == "header":
        file.write_bytes(b"\x10" + b"\0" * 7 + b"{ not json at all" + b"\0" * 64)
        return
    if fault == "missing":
        del state[f"{text}layers.1.mlp.up_proj.weight"]
    elif fault == "extra":
        state[f"{text}layers.7.mlp.up_proj.weight"] = torch.zeros(4)
    elif fault == "shape":
        state[f"{text}norm.weight"] = torch.ones(64).bfloat16()
    elif fault == "type":
        state[f"{text}norm.weight"] = torch.ones(128).double()
    elif fault == "nan":
        state[f"{text}layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(state, file)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("cut short", r"is cut short: [\d,]+ bytes of the [\d,]+"),
        ("too long", r"is damaged: 8 bytes that its header does not list"),
        ("header", "its header is not valid"),
        ("missing", r"lacks 1 weight\(s\): text.layers.1.mlp.up_proj.weight"),
        ("extra", r"has no use for 1 weight\(s\): text.layers.7.mlp.up_proj.weight"),
        ("shape", r"text.norm.weight of shape \[64\], but its config.json asks for \[128\]"),
        ("type", "text.norm.weight as F64; pulse-edge reads BF16, F16, F32"),
        ("nan", "holds values that are not finite"),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_checkpoint_that_is_not_sound_is_refused_in_a_sentence(
    hugging_face, tmp_path, fault, sentence, resume
) -> None:
    shutil.copytree(hugging_face, tmp_path / "checkpoint")
    damaged(tmp_path / "checkpoint", fault)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        export_bundle(tmp_path / "checkpoint", tmp_path / "out", "jetson", resume=resume)
    assert str(caught.value).count("\n") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_missing_shard(llava, tmp_path) -> None:
    shutil.copytree(llava, tmp_path / "checkpoint")
    (tmp_path / "checkpoint/b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b\.safetensors is missing, though the index lists it"):
        export_bundle(tmp_path / "checkpoint", tmp_path / "out", "jetson")


def test_mixed_types_are_said_and_converted_each_on_its_own(clip_checkpoint, llava, tmp_path) -> None:
    def change(state):
        return {name: value.float() if value.ndim == 1 else value for name, value in state.items()}

    steps = []
    mixed = clip_checkpoint(tmp_path / "checkpoint", "llava", change)
    export_bundle(mixed, tmp_path / "mixed", "jetson", report=steps.append)
    export_bundle(llava, tmp_path / "plain", "jetson")
    assert [step for step in steps if step.startswith("weights of several types: ")]
    kinds = read_manifest(tmp_path / "mixed")["model"]["weight_types"]
    assert set(kinds) == {"F32", "BF16"}
    for name in ("decoder.onnx.data", "vision.onnx.data"):
        assert (tmp_path / "mixed" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_too_little_disk_is_said_before_a_weight_is_read(llava, tmp_path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**9, 10**9 - 1000, 1000))
    monkeypatch.setattr(stream.GraphWriter, "fill", lambda *_: pytest.fail("weights were written"))
    with pytest.raises(PulseEdgeError, match=r"The bundle needs \d+ MB, but the disk of .* has 0 MB free"):
        export_bundle(llava, tmp_path / "out", "jetson")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_a_dry_run_writes_nothing_and_is_right(llava, tmp_path, precision) -> None:
    told = preview(llava, tmp_path / "out", "jetson", precision=precision)
    assert list(tmp_path.iterdir()) == []
    export_bundle(llava, tmp_path / "out", "jetson", precision=precision)
    assert told["files"] == {
        path.name: path.stat().st_size for path in sorted((tmp_path / "out").glob("*.onnx*"))
    }
    assert told["kept_fp16"] == read_manifest(tmp_path / "out")["precision"]["decoder_kept_fp16"]
    whole = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert sum(told["files"].values()) <= whole <= told["bytes"]


def test_progress_ends_at_the_whole(llava, tmp_path) -> None:
    seen = []
    export_bundle(llava, tmp_path / "out", "jetson", tick=lambda done, total: seen.append((done, total)))
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]}
    assert done[-1] >= 0.9 * sum(path.stat().st_size for path in (tmp_path / "out").glob("*.data")) - 10**6


def quantised(bits, group, zero):
    """Turn the decoder's matrices into integers, as a calibrating method would; see what they were."""
    given = {}

    def change(state):
        rng = np.random.default_rng(bits)
        for name in [n for n in state if ".layers." in n and n.endswith("proj.weight") and "language" in n]:
            n, k = state[name].shape
            span = 7 if bits == 4 else 127
            weight = QuantizedWeight(
                bits, rng.integers(-span, span + 1, (n, k)).astype(np.int8),
                rng.uniform(0.01, 0.03, (n, k // (group or k))).astype(np.float16),
                rng.integers(-2, 3, (n, k // (group or k))).astype(np.int8) if zero else None,
            )  # fmt: skip
            given[canonical(name).removeprefix("text.").removesuffix(".weight")] = weight
            del state[name]
            state.update({key: torch.from_numpy(value) for key, value in weight.stored(name).items()})
        return state

    return given, change


@pytest.mark.parametrize(
    ("target", "bits", "group", "zero"),
    [("jetson", 4, 64, False), ("jetson", 8, None, False), ("onnx", 4, 32, True), ("onnx", 8, 64, False)],
)
def test_integers_of_a_checkpoint_are_exported_as_they_are(
    clip_checkpoint, tmp_path, stored, target, bits, group, zero
) -> None:
    given, change = quantised(bits, group, zero)
    checkpoint = clip_checkpoint(tmp_path / "checkpoint", "hf", change)
    export_bundle(checkpoint, tmp_path / "out", target)
    manifest = read_manifest(tmp_path / "out")
    assert manifest["precision"]["decoder"] == f"int{bits}"
    assert manifest["model"]["weight_types"][f"INT{bits}"] == len(given) == 14
    arrays = stored(tmp_path / "out/decoder.onnx")
    if target == "onnx":
        arrays = dict(unpacked(arrays, bits, given))
    for name, weight in given.items():
        np.testing.assert_array_equal(arrays[f"{name}.integers"], weight.integers.T)
        np.testing.assert_array_equal(arrays[f"{name}.scale"].reshape(weight.scale.T.shape), weight.scale.T)
        if zero:
            np.testing.assert_array_equal(arrays[f"{name}.zero"], weight.zero.T)
    ours, theirs = OnnxBackend(tmp_path / "out", manifest, 1), TorchBackend(load_model(checkpoint, "float32"))
    a, b = theirs.prefill(None, [1, 5, 9]), ours.prefill(None, [1, 5, 9])
    # behind integers, the profile ort rounds activations to 8 bits too
    assert np.abs(a - b).max() < (2e-2 if target == "onnx" else 5e-3) * np.ptp(a)


def unpacked(arrays, bits, given):
    """What the profile ort holds, in the names and the layout of the others."""
    for name, array in arrays.items():
        stem, _, part = name.rpartition(".")
        if part not in ("integers", "scale", "zero") or stem == "logits":
            continue
        if array.dtype == np.uint8:
            flat = array.reshape(len(array), -1)
            if bits == 4:
                flat = np.stack([flat & 15, flat >> 4], axis=2).reshape(len(flat), -1)
            array = flat.astype(np.int16) - (8 if bits == 4 else 128)
        base, last = stem.rsplit(".", 1)
        names = [stem] if last != "qkv_proj" else [f"{base}.{p}_proj" for p in "qkv"]
        start = 0
        for each in names:
            rows, blocks = given[each].integers.shape[0], given[each].scale.shape[1]
            piece = array[start : start + rows]
            yield f"{each}.{part}", (piece[:, :blocks] if part == "zero" else piece).T
            start += rows


def test_integers_are_not_rounded_again_and_tensorrts_rules_hold_for_them(clip_checkpoint, tmp_path) -> None:
    _, change = quantised(4, 32, True)
    checkpoint = clip_checkpoint(tmp_path / "checkpoint", "hf", change)
    with pytest.raises(
        UserError, match=r"rounding them again to int8 would only lose\. Use --precision int4"
    ):
        export_bundle(checkpoint, tmp_path / "out", "jetson", precision="int8")
    with pytest.raises(
        PulseEdgeError, match=r"q_proj.weight' \(DequantizeLinear\) has a zero point other than 0"
    ):
        export_bundle(checkpoint, tmp_path / "out", "jetson")
    with pytest.raises(PulseEdgeError, match="has int4 blocks of 32; use 64 or 128"):
        export_bundle(checkpoint, tmp_path / "out", "jetson")
    export_bundle(checkpoint, tmp_path / "out", "jetson", precision="fp16")  # what they stand for
    assert json.loads((tmp_path / "out/manifest.json").read_text())["precision"]["decoder"] == "fp16"
