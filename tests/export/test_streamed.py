"""Parity layer by layer: it says what whole models would say, and sees what is wrong with a bundle."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
from transformers import CLIPVisionConfig, LlamaConfig, Qwen2Config

from pulse_edge import commands, machine
from pulse_edge.bundle import read_manifest
from pulse_edge.errors import GateError
from pulse_edge.export import checks, compare_streamed, export_bundle, streamed
from pulse_edge.export.checks import execute_profiles
from pulse_edge.export.source import _DEFAULTS, _TOWER, Source
from pulse_edge.export.vision import _DEFAULTS as _CLIP
from pulse_edge.model.checkpoint import load_model
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.reference import TorchBackend
from pulse_edge.model.tokenizer import Tokenizer

LIMITS = {"logits": 1.0, "probability": 1.0}


@pytest.fixture(scope="module")
def page():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (850, 1100, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def llava(clip_checkpoint, tmp_path_factory):
    return clip_checkpoint(tmp_path_factory.mktemp("llava") / "checkpoint")


@pytest.fixture(scope="module")
def exported(llava, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "fp32"
    export_bundle(llava, folder, "onnx", precision="fp32")
    return folder


def test_both_sides_agree_and_the_reference_is_the_whole_model(llava, exported, page, monkeypatch) -> None:
    """With every visual token read, its logits are those that the checkpoint gives as a whole."""
    seen = {}
    whole = streamed.answers

    def noted(side, *arguments):
        seen[type(side).__name__] = whole(side, *arguments)
        return seen[type(side).__name__]

    monkeypatch.setattr(streamed, "VISUAL", 10**6)
    monkeypatch.setattr(streamed, "answers", noted)
    ticks = []
    result = compare_streamed(llava, exported, page, LIMITS, lambda done, total: ticks.append((done, total)))
    assert result["kind"] == "streamed"
    assert result["visual_tokens"] == [180, 180]
    assert result["labels"] == 5
    assert result["logits_max_abs"] < 1e-4
    assert result["decode_logits_max_abs"] < 1e-4
    assert result["features_max_abs"] < 1e-5
    assert (result["greedy_agreement"], result["label_flips"]) == (1.0, 0)
    assert ticks == [(1, 4), (2, 4), (3, 4), (4, 4)]
    backend, tokenizer = TorchBackend(load_model(llava, "float32")), Tokenizer.from_folder(llava)
    from pulse_edge.ecg.instruct import REPORT_QUESTION
    from pulse_edge.model.preprocess import preprocess

    ids = encode_prompt(build_prompt([(REPORT_QUESTION, None)]), tokenizer)
    expected = backend.prefill(backend.encode(preprocess(page), (1100, 850)), ids)
    np.testing.assert_allclose(seen["_Checkpoint"][0][0], expected, atol=1e-4 * np.ptp(expected))


def test_a_wrong_byte_in_the_last_layer_is_seen(llava, exported, page, tmp_path) -> None:
    shutil.copytree(exported, tmp_path / "bundle")
    graph = onnx.load(str(tmp_path / "bundle/decoder.onnx"), load_external_data=False).graph
    weight = next(t for t in graph.initializer if t.name == "layers.1.mlp.down_proj.weight")
    offset = next(int(entry.value) for entry in weight.external_data if entry.key == "offset")
    with (tmp_path / "bundle/decoder.onnx.data").open("r+b") as stream:
        stream.seek(offset)
        stream.write(np.full(128 * 64, 0.3, np.float32).tobytes())
    result = compare_streamed(llava, tmp_path / "bundle", page, LIMITS, lambda done, total: None)
    assert result["visual_tokens"] == [64, 180]
    assert result["logits_max_abs"] > 0.1


def test_the_verb_compares_in_layers_where_models_do_not_fit(llava, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 0)
    result = commands.export("jetson", str(llava), precision="fp16", output=tmp_path / "out")
    parity = result["parity"]
    assert parity["kind"] == "streamed"
    assert parity["precision"] == "fp16"
    assert 0 < parity["logits_max_abs"] <= parity["limits"]["logits"]
    assert read_manifest(tmp_path / "out")["parity"] == parity


def test_it_is_a_gate(llava, tmp_path, monkeypatch) -> None:
    from pulse_edge.evaluate import parity

    monkeypatch.setattr(machine, "available_memory", lambda: 0)
    monkeypatch.setitem(parity.LIMITS, "int4", {"logits": 1e-6, "probability": 1e-6})
    with pytest.raises(GateError, match="does not answer as the checkpoint does"):
        commands.export("jetson", str(llava), precision="int4", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_profiles_of_a_large_decoder_run_in_its_first_layer_and_head(bundle, checkpoint, monkeypatch) -> None:
    folder = bundle("jetson", "fp16")
    shape = Source(checkpoint).shape
    assert execute_profiles(folder, shape, 49) == {"run": 12, "parts": "all", "not_run": []}
    monkeypatch.setattr(checks, "_FLOPS", 0)
    assert execute_profiles(folder, shape, 49) == {
        "run": 12, "parts": "first layer and head", "not_run": [],
    }  # fmt: skip
    monkeypatch.setattr(checks, "available_memory", lambda: 6_000_000)
    left = execute_profiles(folder, shape, 49)["not_run"]
    assert left == ["decoder prompt max", "decoder prompt opt"]


def test_a_profile_that_does_not_run_is_refused(bundle, checkpoint, monkeypatch) -> None:
    def wrong(shape, tokens):
        return {"embed": {"text": {"input_ids": {kind: [2, 3] for kind in ("min", "opt", "max")}}}}

    monkeypatch.setattr(checks, "profiles", wrong)
    with pytest.raises(GateError, match=r"The profile embed text min does not run: .*input_ids"):
        execute_profiles(bundle("jetson", "fp16"), Source(checkpoint).shape, 49)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(_DEFAULTS["llama"], LlamaConfig()), (_DEFAULTS["qwen2"], Qwen2Config()), (_CLIP, CLIPVisionConfig())],
)
def test_what_a_configuration_leaves_out_is_what_transformers_assumes(ours, theirs) -> None:
    assert {name: getattr(theirs, name) for name in ours} == ours


def test_a_tower_that_is_not_described_is_llava_nexts() -> None:
    from transformers import LlavaNextConfig

    theirs = LlavaNextConfig().vision_config
    assert {name: getattr(theirs, name) for name in _TOWER} == _TOWER


def test_a_configuration_may_leave_out_what_is_usual(clip_checkpoint, tmp_path) -> None:
    folder = clip_checkpoint(tmp_path / "checkpoint", "hf")
    raw = json.loads((folder / "config.json").read_text())
    full = Source(folder).shape
    for name in ("hidden_act", "head_dim", "attention_bias", "mlp_bias", "rms_norm_eps"):
        raw["text_config"].pop(name, None)
    raw["vision_config"].pop("layer_norm_eps")
    (folder / "config.json").write_text(json.dumps(raw))
    assert Source(folder).shape == full
