"""Whole Core ML exports: what a bundle holds and says, that it plays, and that it is all or nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from coremltools.converters.mil.frontend.milproto.load import load as milproto_load
from coremltools.models.utils import load_spec
from PIL import Image
from safetensors.torch import load_file, save_file

from pulse_edge import commands
from pulse_edge.bundle import read_manifest, verify_bundle, write_manifest
from pulse_edge.contract import IMAGE_MEAN
from pulse_edge.errors import BundleError, FitError, GateError, MissingExtraError, PulseEdgeError, UserError
from pulse_edge.export import export_bundle
from pulse_edge.export.coreml import layout, metadata
from pulse_edge.export.coreml.player import CoremlBackend
from pulse_edge.export.milrun import load_package
from pulse_edge.model.checkpoint import load_model
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.quantized import QuantizedWeight
from pulse_edge.model.reference import TorchBackend
from pulse_edge.runtimes.load import load
from pulse_edge.samples import SAMPLES, samples

ROLES = ["decoder", "embed", "preprocess", "vision"]


def hashes(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def exported(small_checkpoint, tmp_path_factory):
    """Export the small model, once for each precision, with its gate on two of the six ECGs."""
    made = {}

    def export(precision):
        if precision not in made:
            folder = tmp_path_factory.mktemp("coreml") / precision
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("pulse_edge.commands._export.samples", lambda: samples()[:2])
                result = commands.export("coreml", str(small_checkpoint), precision=precision, output=folder)
            made[precision] = (folder, result)
        return made[precision]

    return export


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-4), ("fp16", 0.1)])
def test_a_bundle_answers_as_pytorch_does(exported, precision, limit):
    """Real ECGs, their reports and labels, and 64 steps on each with the state carried along."""
    folder, result = exported(precision)
    parity = result["parity"]
    assert (parity["pages"], parity["steps"]) == (2, 64)
    assert max(parity["logits_max_abs"], parity["decode_logits_max_abs"]) <= limit
    assert parity["label_flips"] == 0
    assert parity["tiles"]["max_levels"] <= 2
    assert verify_bundle(folder) == []


def test_the_manifest_says_what_an_app_must_know(exported):
    folder, _ = exported("fp16")
    manifest = read_manifest(folder)
    assert sorted(manifest["graphs"]) == ROLES
    assert manifest["device"]["profile"] == "iphone-15-pro"
    assert manifest["coreml"]["floor"] == {"ios": "18.0", "macos": "15.0"}
    lengths = manifest["coreml"]["decoder"]
    assert (lengths["graphs"], lengths["prefill"], lengths["masked"]) == (["decoder"], 32, -1e4)
    assert lengths["cache"] % 32 == 0
    assert manifest["generation"]["context"] == 512
    decode = manifest["graphs"]["decoder"]["functions"]["decode"]
    assert decode["inputs"]["mask"] == {"dtype": "float16", "shape": [1, 1, 1, lengths["cache"]]}
    assert decode["states"]["k_cache"] == {"dtype": "float16", "shape": [2, 1, lengths["cache"], 16]}
    assert decode["outputs"] == {"logits": {"dtype": "float16", "shape": [1, 700]}}
    assert manifest["graphs"]["preprocess"]["inputs"]["image"]["shape"] == [[16, 8192], [16, 8192], 3]
    assert manifest["graphs"]["vision"]["inputs"]["tiles"] == {"dtype": "rgb8", "shape": [1680, 336, 3]}
    assert manifest["graphs"]["embed"]["inputs"]["input_ids"]["shape"] == [1, [1, 512]]
    assert "coremltools" in manifest["toolchain"]
    assert (folder / "tokenizer.model").is_file()


@pytest.mark.parametrize("role", ROLES)
def test_every_package_says_what_it_is_and_it_reloads(exported, role):
    folder, result = exported("fp16")
    spec = load_spec(str(folder / f"{role}.mlpackage"))
    weights = folder / f"{role}.mlpackage/Data/com.apple.CoreML/weights"
    # coremltools' own reader infers every type and shape anew.
    functions = milproto_load(spec, spec.specificationVersion, str(weights)).functions
    assert sorted(functions) == (["decode", "prefill"] if role == "decoder" else ["main"])
    description = spec.description
    about, manifest = description.metadata, read_manifest(folder)
    assert about.author == metadata.AUTHOR
    assert manifest["intended_use"] in about.shortDescription
    assert about.versionString.startswith("small, pulse-edge ")
    own = {key.removeprefix("pulse-edge."): value for key, value in about.userDefined.items()}
    assert own["role"] == role
    assert json.loads(own["preprocessing"])["mean"] == list(IMAGE_MEAN)
    assert json.loads(own["accuracy"])[-1] == {"stage": "bundle", "parity": result["parity"]}
    assert json.loads(own["licences"]) == manifest["licences"]
    assert own["intended_use"] == manifest["intended_use"]
    assert not any("date" in key for key in about.userDefined)
    holders = [description, *description.functions]
    features = [f for holder in holders for f in (*holder.input, *holder.output, *holder.state)]
    assert features
    assert all(feature.shortDescription for feature in features)
    assert load_package(folder / f"{role}.mlpackage").metadata["author"] == metadata.AUTHOR


def test_the_verbs_play_a_bundle_and_say_where_it_belongs(exported, small_checkpoint):
    folder, _ = exported("fp32")
    page = SAMPLES / "normal.png"
    played = commands.run(str(folder), image=page, labels=True)
    torch = commands.run(str(small_checkpoint), image=page, labels=True)
    assert played["labels"] == pytest.approx(torch["labels"], abs=1e-4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        with pytest.raises(MissingExtraError, match=r"pulse-edge\[coreml\]"):
            commands.run(str(folder), image=page, labels=True)
    with pytest.raises(BundleError, match=r"runs on an iPhone, an iPad or a Mac.*pulse-edge\[coreml\]"):
        load(folder)


def test_verify_executes_a_bundle_and_notices_another_answer(exported, tmp_path):
    folder, _ = exported("fp16")
    assert commands.verify(folder, execute=True) == {"ok": True, "problems": []}
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    manifest = read_manifest(other)
    manifest["parity"]["probe"]["labels"]["MI"] += 0.1
    manifest["parity"]["probe"]["tokens"][3] ^= 1

    write_manifest(
        other, {k: v for k, v in manifest.items() if k not in ("schema", "files", "signature", "digest")}
    )
    problems = commands.verify(other, execute=True)["problems"]
    assert len(problems) == 2
    assert "first tokens differ" in problems[0]
    assert "label MI differs" in problems[1]


def test_a_damaged_package_is_found(exported, tmp_path):
    folder = Path(shutil.copytree(exported("fp16")[0], tmp_path / "copy"))
    weights = folder / "decoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert [p for p in verify_bundle(folder) if "decoder.mlpackage" in p and "differs" in p]
    shutil.rmtree(folder / "embed.mlpackage")
    assert any("embed.mlpackage" in p and "missing" in p for p in verify_bundle(folder))


def test_the_same_export_writes_the_same_bytes_and_one_that_fails_its_gate_none(small_checkpoint, tmp_path):
    export_bundle(small_checkpoint, tmp_path / "one", "coreml", precision="int4")
    seen = []

    def gate(folder, precision):
        seen.append((hashes(folder), precision))
        raise GateError("no")

    with pytest.raises(GateError):
        export_bundle(small_checkpoint, tmp_path / "two", "coreml", precision="int4", gate=gate)
    assert seen == [(hashes(tmp_path / "one"), "int4")]
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_quantised_checkpoint_gives_its_own_integers(small_checkpoint, tmp_path):
    """int4 without being asked, its integers and no others, and what it left dense stays dense."""
    checkpoint = Path(shutil.copytree(small_checkpoint, tmp_path / "checkpoint"))
    file = checkpoint / "model.safetensors"
    weights, rng = load_file(file), np.random.default_rng(0)
    import torch

    layers = [name for name in weights if name.endswith(("q_proj.weight", "down_proj.weight"))]
    own = {}
    for name in layers:
        rows, columns = weights.pop(name).shape
        integers = rng.integers(-7, 8, (rows, columns)).astype(np.int8)
        scale = rng.uniform(0.01, 0.02, (rows, columns // 16)).astype(np.float16)
        own[name] = QuantizedWeight(4, integers, scale)
        weights |= {key: torch.from_numpy(value) for key, value in own[name].stored(name).items()}
    save_file(weights, file, {"format": "pt"})
    manifest = export_bundle(checkpoint, tmp_path / "out", "coreml")
    assert manifest["precision"]["decoder"] == "int4"
    package = load_package(tmp_path / "out/decoder.mlpackage")
    assert package.operations("decode")["constexpr_blockwise_shift_scale"] == len(layers)
    # PyTorch multiplies what the same integers stand for, so only half precision is between the two.
    rows = np.random.default_rng(1).integers(3, 600, 20).tolist()
    played = CoremlBackend(tmp_path / "out", manifest).extend(rows)
    assert np.abs(played - TorchBackend(load_model(checkpoint, "float32")).extend(rows)).max() < 0.1


def test_a_full_disk_leaves_nothing_and_says_so(small_checkpoint, tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))
    try:
        with pytest.raises(PulseEdgeError, match=r"disk of .* is full; nothing was left"):
            export_bundle(small_checkpoint, tmp_path / "out", "coreml")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"device": "orin-nano-8gb"}, UserError, "the target coreml is for iphone or ipad or mac"),
        ({"target": "onnx", "precision": "palette4"}, UserError, "palette4 is a format of Core ML"),
        ({"target": "jetson", "device": "iphone-15-pro"}, UserError, "the target jetson is for jetson"),
    ],
)
def test_wrong_choices_are_refused_before_anything_is_read(tmp_path, options, error, sentence):
    with pytest.raises(error, match=sentence):
        export_bundle(Path("nowhere"), tmp_path / "out", **{"target": "coreml", **options})


def test_without_coremltools_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingExtraError, match=r"pulse-edge\[coreml\]"):
        export_bundle(Path("nowhere"), tmp_path / "out", "coreml")


def test_a_model_that_does_not_fit_is_refused_before_it_is_converted(small_checkpoint, tmp_path):
    """The config.json and headers of a 7B model are enough for the answer."""
    checkpoint = Path(shutil.copytree(small_checkpoint, tmp_path / "large"))
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"] |= {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "head_dim": 128,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
    }  # fmt: skip
    (checkpoint / "config.json").write_text(json.dumps(config))
    steps = []
    with pytest.raises(FitError):
        export_bundle(checkpoint, tmp_path / "out", "coreml", precision="int4", report=steps.append)
    assert steps == []


def test_the_player_follows_the_manifest(exported):
    folder, _ = exported("fp32")
    backend = CoremlBackend(folder, read_manifest(folder))
    with pytest.raises(ValueError, match="cannot rewind to 3: 0 tokens were read"):
        backend.rewind(3)
    first = backend.extend([5, 6, 7])
    backend.extend([8])
    backend.rewind(2)
    assert np.abs(backend.extend([7]) - first).max() < 1e-4
    backend.position = backend.context
    with pytest.raises(UserError, match="the bundle's context is 512"):
        backend.step(1)


def test_a_large_decoder_is_several_packages_that_are_called_in_order(
    small_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(layout, "_CHUNK", 1)
    manifest = export_bundle(small_checkpoint, tmp_path / "out", "coreml", precision="fp32")
    assert manifest["coreml"]["decoder"]["graphs"] == ["decoder-0", "decoder-1"]
    assert verify_bundle(tmp_path / "out") == []
    about = load_spec(str(tmp_path / "out/decoder-1.mlpackage")).description.metadata
    assert "Part 2 of several" in about.shortDescription
    played = CoremlBackend(tmp_path / "out", manifest)
    torch = TorchBackend(load_model(small_checkpoint, "float32"))
    for tokens in (range(3, 43), [50], [60]):
        assert np.abs(played.extend(list(tokens)) - torch.extend(list(tokens))).max() < 1e-4


@pytest.mark.parametrize("name", ["pulse_tiny_flat", "pulse_tiny_spatial_unpad"])
def test_the_golden_checkpoints_answer_as_pulse_does(shared, tmp_path, name):
    """Logits to 1e-3 and the same 24 tokens as the reference code, in PULSE's layout with a CLIP tower."""
    golden = shared / "golden"
    manifest = export_bundle(golden / "model" / name, tmp_path / "bundle", "coreml", precision="fp32")
    backend = CoremlBackend(tmp_path / "bundle", manifest)
    cases = json.loads((golden / "model/gold.json").read_text())[name]["cases"]
    checked = 0
    for case in cases:
        stored = golden / "model" / f"{name}__{case['case']}.npz"
        if not stored.exists():
            continue
        with Image.open(golden / "preprocess/images" / case["image"]) as image:
            picture, size = image.convert("RGB"), image.size
        with np.load(stored) as arrays:
            embeddings = backend.encode(preprocess(picture), size)
            logits = backend.prefill(embeddings, case["input_ids"])
            assert np.abs(logits - arrays["logits_last"]).max() < 1e-3
            tokens = []
            for expected in arrays["greedy_step_logits"]:
                assert np.abs(logits - expected).max() < 1e-3
                tokens.append(int(logits.argmax()))
                logits = backend.step(tokens[-1])
            assert tokens == arrays["greedy_tokens"].tolist() == case["greedy_tokens_fp32"]
        checked += 1
        break  # 2,880 visual tokens take their time
    assert checked == 1
