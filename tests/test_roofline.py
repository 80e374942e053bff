"""Speeds: the arithmetic by hand, and the rates held against what `benchmarks/plan.py` fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pulse_edge.commands._plan import read_model
from pulse_edge.device import Value, list_devices, load_device
from pulse_edge.fit import TARGET_OF, Setup
from pulse_edge.roofline import prompt_flops, prompt_ms, rates, speed, token_bytes, token_ms

PULSE, STUDENT = read_model("pulse-7b"), read_model("pulse-2b")


@pytest.mark.parametrize(
    ("gb_s", "context", "tokens_s"),
    [
        (51, 0, 14.2),
        (102.4, 0, 28.4),
        (204.8, 0, 56.9),
        (273, 0, 75.8),
        (102.4, 3000, 19.8),
        (204.8, 3000, 39.6),
    ],
)
def test_the_speed_of_light_of_pulse_7b(gb_s, context, tokens_s):
    moved = token_bytes(PULSE, 4.125, 16, context)
    assert 1e3 / token_ms(moved, 32, gb_s, 1.0, 0.0) == pytest.approx(tokens_s, rel=0.005)


def test_a_token_by_hand():
    assert token_ms(moved=2e9, layers=30, gb_s=100, share=0.5, launch_us=100) == pytest.approx(40 + 3)


def test_a_prompt_by_hand():
    # 38.1 TFLOP of matrices for 2,940 tokens; 2 S^2 h L of causal attention; one row of logits
    flops = prompt_flops(PULSE, 2940)
    assert flops == 2 * 6_476_005_376 * 2940 + 2 * 2940**2 * 4096 * 32 + 2 * 131_072_000
    assert flops / 1e12 == pytest.approx(40.3, abs=0.1)
    assert prompt_ms(1e12, 20, 0.5, weights_ms=1, layers=10, launch_us=100) == pytest.approx(100 + 1)
    assert prompt_ms(1e12, 20, 0.5, weights_ms=500, layers=10, launch_us=100) == pytest.approx(500 + 1)


def test_pulse_7b_lies_where_scaling_published_rows_puts_it():
    """Scaled by hand from NVIDIA's Qwen3-8B: prefill 4.0 to 4.9 s on Orin NX, 1.8 to 2.2 s on AGX Orin."""
    nx = speed(PULSE, load_device("orin-nx-16gb"), Setup())
    agx = speed(PULSE, load_device("agx-orin-64gb"), Setup())
    assert 4000 < nx["prefill_ms"]["value"] < 4900
    assert 1800 < agx["prefill_ms"]["value"] < 2200
    # TinyChat: 8B, 2,048 tokens, 1.25 s on AGX Orin; Vicuna-7B decodes at 38 tokens/s with an empty cache
    assert 20 < agx["decode_tokens_s"]["value"] < 38
    assert agx["bound"] == {"prefill": "compute", "decode": "bandwidth"}
    assert agx["label"] == "estimate"
    assert not agx["extrapolated"]


@settings(deadline=None)
@given(
    device=st.sampled_from([name for name in list_devices() if name != "raspberry-pi-5"]),
    shape=st.sampled_from([PULSE, STUDENT]),
    precision=st.sampled_from(["fp16", "int8", "int4"]),
    tiles=st.sampled_from([1, 3, 5]),
)
def test_figures_are_ordered_and_unknown_stays_unknown(device, shape, precision, tiles):
    profile = load_device(device)
    setup = Setup(precision=precision, target=TARGET_OF[profile.kind], tiles=tiles)
    found = speed(shape, profile, setup)
    for name in ("vision_ms", "prefill_ms", "ttft_ms", "decode_tokens_s", "sustained_tokens_s", "report_s"):
        figure = found[name]
        assert figure is None or 0 < figure["low"] < figure["value"] < figure["high"]
    known = {name: profile.values[name].value is not None for name in ("bandwidth_gb_s", "fp16_tflops")}
    assert (found["decode_tokens_s"] is not None) == known["bandwidth_gb_s"]
    assert (found["ttft_ms"] is not None) == all(known.values())
    assert (found["sustained_tokens_s"] is not None) == (profile.kind == "iphone")
    assert all(found["sources"].values())


@settings(deadline=None)
@given(factor=st.floats(1.01, 10), name=st.sampled_from(["bandwidth_gb_s", "fp16_tflops"]))
def test_a_better_device_is_never_slower(factor, name):
    nx = load_device("orin-nx-16gb")
    better = replace(nx, values={**nx.values, name: Value(nx.values[name].value * factor, "test", "C")})
    before, after = speed(PULSE, nx, Setup()), speed(PULSE, better, Setup())
    assert after["ttft_ms"]["value"] <= before["ttft_ms"]["value"]
    assert after["decode_tokens_s"]["value"] >= before["decode_tokens_s"]["value"]
    assert after["report_s"]["value"] < before["report_s"]["value"]


def test_fewer_tokens_and_fewer_bits_are_faster():
    nx = load_device("orin-nx-16gb")
    plain = speed(PULSE, nx, Setup())
    for change in ({"tiles": 1}, {"keep": 0.5}):
        assert speed(PULSE, nx, Setup(**change))["ttft_ms"]["value"] < plain["ttft_ms"]["value"]
    for change in ({"kv": "int8"}, {"tiles": 1}):
        quick = speed(PULSE, nx, Setup(**change))["decode_tokens_s"]["value"]
        assert quick > plain["decode_tokens_s"]["value"]
    assert speed(PULSE, nx, Setup(precision="int8"))["report_s"]["value"] > plain["report_s"]["value"]


def test_every_device_has_rates_with_a_source():
    for name in list_devices():
        profile = load_device(name)
        for precision in ("fp32", "fp16", "int8", "int4", "fp8", "nvfp4"):
            for rate in rates(profile, Setup(precision=precision, target=TARGET_OF[profile.kind])):
                assert 0 < rate.share <= 1
                assert rate.band >= 1.25
                assert rate.source


def test_a_model_smaller_than_any_that_was_fitted_says_so():
    assert speed(read_model("pulse-nano"), load_device("orin-nano-8gb"), Setup())["extrapolated"]
