"""The sum of what a model holds: against hand-computed values, exported files and published peaks."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulse_edge.commands._plan import read_model
from pulse_edge.device import list_devices, load_device
from pulse_edge.errors import FitError, UnknownNameError, UserError
from pulse_edge.fit import (
    BITS,
    HELD,
    LINES,
    RUNTIME,
    Setup,
    fit,
    memory,
    prompt_bytes,
    require_fit,
    usable_bytes,
    weight_bytes,
)
from pulse_edge.model.checkpoint import resolve_model
from pulse_edge.remedies import students
from pulse_edge.samples import SAMPLES
from pulse_edge.shape import read_shape

PULSE = read_model("pulse-7b")
MODELS = [PULSE, *students()]


def test_pulse_7b_in_int4_is_what_the_arithmetic_says():
    # 6.476 G matrix weights of 4 bits and an fp16 scale for 128, and two fp16 tables of 32,000 x 4,096
    by_hand = 6_476_005_376 / 2 + 6_476_005_376 / 128 * 2 + 2 * 2 * 131_072_000 + 4 * (65 * 4096)
    lines = memory(PULSE, Setup())
    assert lines["weights"] == by_hand
    assert lines["weights"] / 1e9 == pytest.approx(3.86, abs=0.005)
    assert lines["vision"] == 2 * (290_909_184 + 20_979_712)
    assert lines["kv"] == 2 * 3392 * 524_288  # two caches of 2,880 visual tokens and 512 of conversation
    assert lines["kv"] / 2 / 3392 / 2**20 == 0.5
    assert memory(PULSE, Setup(context=2944 + 1))["kv"] / 2e9 == pytest.approx(1.54, abs=0.005)
    assert memory(PULSE, Setup(context=4096))["kv"] / 2e9 == pytest.approx(2.147, abs=0.001)
    # TensorRT reserves one step of the whole length: scores of 32 heads and one layer's rows, or the MLP's
    rows = 3392 * (4096 + 4096 + 4 * 4096)
    assert lines["activations"] == 2 * (rows + 32 * 3392**2 + 32000)
    assert memory(PULSE, Setup(kv="int8"))["kv"] * 2 == lines["kv"]
    assert lines["total"] == sum(lines[name] for name in LINES)


def test_core_ml_holds_one_cache_with_room_for_a_padded_step():
    assert memory(PULSE, Setup(target="coreml"))["kv"] == 3520 * 524_288  # 3,392 + 127, in steps of 32
    assert memory(PULSE, Setup(target="coreml", precision="int8"))["kv"] == 3424 * 524_288


def test_onnx_runtime_appends_in_place_where_its_operators_take_the_heads():
    setup = Setup(target="onnx", precision="int8")
    assert memory(PULSE, setup)["kv"] == 3392 * 4 * PULSE.kv_per_token
    narrow = replace(PULSE, heads=512, kv_heads=512, head_dim=8)
    assert memory(narrow, setup)["kv"] == 2 * 3392 * 4 * PULSE.kv_per_token
    assert memory(narrow, setup)["weights"] > 1.9 * memory(PULSE, setup)["weights"]
    both = memory(PULSE, Setup(target="onnx"))["weights"]  # int4 and, for prompts, int8
    assert both > memory(PULSE, setup)["weights"] > memory(narrow, Setup(target="onnx"))["weights"] / 1.1


def test_pulse_7b_in_fp16_is_the_released_file():
    own = weight_bytes(PULSE, Setup(precision="fp16")) - 2 * PULSE.small  # export keeps norms in fp32
    assert own + 2 * (303_507_456 + 20_979_712 + 4096) == 14_125_813_760  # 2 bytes a parameter
    assert 2 * PULSE.parameters == 14_125_813_760


@pytest.mark.parametrize(("target", "precision"), [("jetson", "int4"), ("onnx", "int8"), ("onnx", "int4")])
def test_weights_are_as_large_as_the_files_that_export_writes(target, precision, tmp_path):
    from pulse_edge.export import export_bundle

    checkpoint = resolve_model("pulse-nano")
    export_bundle(checkpoint, tmp_path / "bundle", target, precision=precision)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "bundle").glob("*.onnx*")}
    shape, setup = read_shape(checkpoint), Setup(precision=precision, target=target)
    said, second = weight_bytes(shape, setup), prompt_bytes(shape, setup)
    written = sum(size for name, size in sizes.items() if name.startswith(("decoder.", "embed.")))
    again = sum(size for name, size in sizes.items() if name.startswith("prompt."))
    # beside the weights: the graphs, rotary tables of 1,024 positions, gaps of up to 4 KiB between arrays
    assert said < written < said + 450_000
    assert said > 1_000_000
    assert (second > 0) == (again > 0) == ((target, precision) == ("onnx", "int4"))
    assert second <= again <= 1.2 * second


def test_heads_that_have_no_second_graph_are_those_that_export_says():
    from pulse_edge.export.ort_decoder import takes
    from pulse_edge.export.shape import DecoderShape

    for width in range(8, 144, 4):
        has = prompt_bytes(replace(PULSE, head_dim=width), Setup(target="onnx")) > 0
        assert has == takes(DecoderShape(1, 64, 2, 2, width, 100, 128, 1e4, 1e-5))


def test_onnx_runtime_holds_what_was_measured(root):
    """The rise of a process' peak over a decoder's weights, each within a fifth of what the plan counts."""
    kept = json.loads((root / "benchmarks" / "results" / "ort_memory.json").read_text())["precisions"]
    assert set(kept) == set(HELD)
    for precision, row in kept.items():
        said = row["counted"] * HELD[precision] + 20  # MB of the session itself
        assert said == pytest.approx(row["peak"] - row["before"], rel=0.2)


def test_a_bundle_of_pulse_nano_runs_in_what_the_plan_says(small_bundle):
    """Peak memory of the command in a process of its own, on a smaller model: nearly all is the runtime."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("peak memory is read from /proc")
    script = (
        "import sys\nfrom pulse_edge import cli\ntry:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "print([line.split()[1] for line in lines if line.startswith('VmHWM')][0], file=sys.stderr)"
    )
    page = str(SAMPLES / "normal.png")
    command = [sys.executable, "-c", script, "run", str(small_bundle), "--image", page, "--labels", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(done.stderr.split()[-1]) * 1024
    assert peak == pytest.approx(RUNTIME["onnx"], rel=0.3)


@pytest.mark.parametrize("device", ["orin-nano-8gb", "iphone-16-pro", "iphone-15-pro", "orin-nano-4gb"])
def test_pulse_7b_does_not_fit_devices_of_8_gb(device):
    profile = load_device(device)
    target = "jetson" if profile.kind == "jetson" else "coreml"
    result = fit(PULSE, profile, Setup(target=target))
    assert result["fits"] is False
    assert result["spare"] < -2e9


@pytest.mark.parametrize("device", ["orin-nx-16gb", "agx-orin-32gb", "agx-orin-64gb", "thor-t5000"])
def test_pulse_7b_fits_jetsons_from_16_gb(device):
    assert fit(PULSE, load_device(device), Setup())["fits"] is True


def test_usable_memory_is_the_profiles_share():
    assert usable_bytes(load_device("orin-nano-8gb")) == 5_200_000_000
    assert usable_bytes(load_device("iphone-16")) == 2_800_000_000
    assert usable_bytes(load_device("iphone-16"), entitled=True) == 4_000_000_000
    assert usable_bytes(load_device("orin-nano-8gb"), entitled=True) == 5_200_000_000
    assert usable_bytes(load_device("x86-cpu")) is None


def test_the_binding_line_is_where_the_sum_passes_the_limit():
    nano = load_device("orin-nano-8gb")
    assert fit(PULSE, nano, Setup())["binding"] == "kv"
    assert fit(PULSE, nano, Setup(precision="fp16"))["binding"] == "weights"
    assert fit(PULSE, load_device("iphone-17-pro"), Setup(target="coreml"))["binding"] == "vision"
    fitting = fit(PULSE, load_device("agx-orin-64gb"), Setup())
    assert fitting["lines"][fitting["binding"]] == max(fitting["lines"].values())
    unknown = fit(PULSE, load_device("x86-cpu"), Setup(target="onnx"))
    assert (unknown["usable"], unknown["fits"], unknown["spare"]) == (None, None, None)


setups = st.builds(
    Setup,
    precision=st.sampled_from(["fp16", "int8", "int4"]),
    target=st.sampled_from(["jetson", "onnx", "coreml"]),
    tiles=st.sampled_from([1, 3, 4, 5]),
    keep=st.floats(0.05, 1.0),
    kv=st.sampled_from(["fp16", "int8"]),
)


@settings(deadline=None)
@given(shape=st.sampled_from(MODELS), setup=setups)
def test_less_never_needs_more(shape, setup):
    total = memory(shape, setup)["total"]
    assert memory(shape, replace(setup, kv="int8"))["total"] <= total
    assert memory(shape, replace(setup, tiles=1))["total"] <= total
    assert memory(shape, replace(setup, keep=setup.keep / 2))["total"] <= total
    assert weight_bytes(shape, replace(setup, precision="int4")) <= weight_bytes(shape, setup)
    assert all(size > 0 for size in memory(shape, setup).values())


@settings(deadline=None)
@given(
    shape=st.sampled_from(MODELS),
    setup=setups,
    device=st.sampled_from([name for name in list_devices() if name not in ("raspberry-pi-5",)]),
)
def test_it_fits_exactly_when_the_lines_sum_to_less(shape, setup, device):
    result = fit(shape, load_device(device), setup)
    assert result["total"] == sum(result["lines"].values())
    if result["usable"] is not None:
        assert result["fits"] == (sum(result["lines"].values()) <= result["usable"])
        assert result["spare"] == result["usable"] - result["total"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"precision": "int3"}, "Unknown precision 'int3'"),
        ({"precision": "nvfp4"}, "has no nvfp4 .* Use one of fp16, int8, int4"),
        ({"target": "jetsn"}, "Did you mean 'jetson'"),
        ({"kv": "int4"}, "Unknown precision of the cache"),
        ({"tiles": 2}, "1, 3, 4, 5 tiles, not 2"),
        ({"tiles": 0}, "tiles, not 0"),
        ({"keep": 0.0}, "above 0 and at most 1, not 0.0"),
        ({"keep": float("nan")}, "above 0 and at most 1, not nan"),
        ({"context": 100}, "image and prompt alone have 2,944, and the model reads 4,096"),
        ({"context": 5000}, "A context of 5000 tokens is of no use"),
        ({"context": -1}, "of no use"),
        ({"context": 0}, "of no use"),
    ],
)
def test_a_setup_that_cannot_be_is_refused(change, sentence):
    with pytest.raises((UserError, UnknownNameError), match=sentence):
        fit(PULSE, load_device("orin-nx-16gb"), Setup(**change))


@pytest.fixture(scope="module")
def pulse_checkpoint(tmp_path_factory):
    """PULSE-7B's configuration and headers over a file of 14 GB that takes no space: it is all hole."""
    folder = tmp_path_factory.mktemp("pulse-7b") / "PULSE-7B"
    folder.mkdir()
    text = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
    }  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14, "image_size": 336,
    }  # fmt: skip
    config = {
        "model_type": "pulse", "merge": "flat", "text_config": text, "vision_config": vision,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    entry = {"dtype": "BF16", "shape": [32000, 4096], "data_offsets": [0, 14_125_813_760]}
    header = json.dumps({"lm_head.weight": entry}).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + 14_125_813_760)
    return folder


@pytest.mark.parametrize("device", ["iphone-15-pro", "iphone-16", "iphone-16-pro", "iphone-17"])
def test_pulse_7b_on_an_iphone_of_8_gb_is_refused_with_the_line_and_three_remedies(device, pulse_checkpoint):
    with pytest.raises(FitError) as caught:
        require_fit(pulse_checkpoint, device, "int4", "coreml")
    sentence = str(caught.value)
    assert caught.value.exit_code == 2
    assert f"PULSE-7B in int4 does not fit the {load_device(device).title}: it needs 6.68 GB" in sentence
    assert "2.80 GB are planned as usable" in sentence
    assert "the language-model weights alone (3.86 GB) pass the limit" in sentence
    assert "(1) the student pulse-2b in int4, 2.14 of 2.80 GB" in sentence
    assert "(2) " in sentence
    assert "(3) " in sentence


def test_pulse_7b_on_an_orin_nano_of_8_gb_is_refused_for_its_cache(pulse_checkpoint):
    with pytest.raises(FitError) as caught:
        require_fit(pulse_checkpoint, "orin-nano-8gb", "int4", "jetson")
    sentence = str(caught.value)
    assert "the key-value cache for 3,392 tokens (3.56 GB) passes the limit" in sentence
    assert "language-model weights and vision tower take 4.49 GB of them" in sentence
    assert "the student pulse-2b in int4" in sentence
    assert "(3) a larger device, Jetson Orin NX 16 GB" in sentence


def test_what_fits_is_let_through(pulse_checkpoint):
    result = require_fit(pulse_checkpoint, "orin-nx-16gb", "int4", "jetson")
    assert result["fits"] is True
    assert result["tokens"] == {"visual": 2880, "prompt": 2944, "context": 3392}
    assert require_fit(pulse_checkpoint, "x86-cpu", "int4", "onnx")["fits"] is None
    assert require_fit(pulse_checkpoint, "mac-m1-max", "fp16", "coreml")["fits"] is True


def test_entitlements_are_planned_with_only_when_asked(pulse_checkpoint):
    plain = Setup(target="coreml", context=2945)
    phone = load_device("iphone-17-pro")
    assert fit(PULSE, phone, replace(plain, entitled=True))["usable"] == 6_000_000_000
    with pytest.raises(FitError, match="both memory entitlements in the app"):
        require_fit(pulse_checkpoint, "iphone-17-pro", "int4", "coreml")
    with pytest.raises(FitError) as caught:
        require_fit(pulse_checkpoint, "iphone-17-pro", "int4", "coreml", entitled=True)
    assert "entitlements" not in str(caught.value)


def test_require_fit_names_what_it_does_not_know(pulse_checkpoint):
    with pytest.raises(UnknownNameError, match="iphone-15-pro"):
        require_fit(pulse_checkpoint, "iphone-15pro", "int4", "coreml")
    with pytest.raises(UserError, match="has no fp32"):
        require_fit(pulse_checkpoint, "orin-nano-8gb", "fp32", "jetson")
    assert set(BITS) >= {"fp32", "fp16", "int8", "int4"}
