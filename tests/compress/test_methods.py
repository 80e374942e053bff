"""What the methods do to a matrix: the integers' range, the error they leave, and what must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

from pulse_edge.compress import awq
from pulse_edge.compress.form import Form
from pulse_edge.compress.methods import METHODS, find_method
from pulse_edge.errors import UnknownNameError, UserError

FORMS = [Form(8, None), Form(4, 64), Form(4, 128), Form(4, 64, symmetric=False), Form(8, 32, symmetric=False)]


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return (
        torch.from_numpy(np.random.default_rng(seed).standard_t(4, (rows, columns)).astype(np.float32)) * 0.02
    )


def moments(columns: int, seed: int = 1) -> torch.Tensor:
    """Second moments of inputs that go together and are of very different size."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * columns, columns // 4)) @ rng.normal(size=(columns // 4, columns))
    x = (x + 0.1 * rng.normal(size=x.shape)) * rng.lognormal(0, 1.2, columns)
    return torch.from_numpy((x.T @ x / len(x)).astype(np.float32))


def output_error(weight: torch.Tensor, rounded: np.ndarray, gram: torch.Tensor) -> float:
    error = torch.from_numpy(rounded) - weight
    return float(((error @ gram) * error).sum())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@pytest.mark.parametrize("name", METHODS)
def test_integers_and_what_they_stand_for(name, form) -> None:
    weight = matrix(24, 256)
    found = METHODS[name].quantize(weight, moments(256), form)
    low = -(127 if form.bits == 8 else 7) if form.symmetric else -(2 ** (form.bits - 1))
    assert found.integers.min() >= low
    assert found.integers.max() <= 2 ** (form.bits - 1) - 1
    assert found.group == (form.group or 256)
    assert (found.zero is None) == form.symmetric
    if name == "gptq":  # it gives up weights for outputs: see below
        return
    relative = np.abs(found.dequantize() - weight.numpy()).mean() / weight.abs().mean()
    assert relative < (0.02 if form.bits == 8 else 0.35)


@given(st.integers(0, 1000), st.sampled_from(FORMS))
def test_round_to_nearest_is_off_by_half_a_step_at_most(seed, form) -> None:
    weight = matrix(3, 128, seed)
    found = METHODS["rtn"].quantize(weight, None, form)
    step = np.repeat(found.scale.astype(np.float32), found.group, axis=1)
    # a zero point is rounded too, and scales are rounded to float16
    assert (np.abs(found.dequantize() - weight.numpy()) <= step * (0.51 if form.symmetric else 1.02)).all()


def test_calibration_lowers_the_error_of_the_outputs() -> None:
    form, weight, gram = Form(4, 64), matrix(64, 256), moments(256)
    error = {
        n: output_error(weight, m.quantize(weight, gram, form).dequantize(), gram) for n, m in METHODS.items()
    }
    assert error["clip"] < error["rtn"]
    assert error["gptq"] < 0.7 * error["rtn"]


def test_gptq_without_correlations_is_round_to_nearest() -> None:
    weight, form = matrix(8, 128), Form(4, 64)
    gptq, rtn = METHODS["gptq"], METHODS["rtn"]
    assert np.array_equal(
        gptq.quantize(weight, torch.eye(128), form).integers, rtn.quantize(weight, None, form).integers
    )


def test_gptq_takes_inputs_that_are_always_nought_and_fewer_tokens_than_channels() -> None:
    weight = matrix(8, 128)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 128)).astype(np.float32)
    x[:, 7] = 0
    found = METHODS["gptq"].quantize(weight, torch.from_numpy(x.T @ x / 5), Form(4, 64))
    assert np.isfinite(found.dequantize()).all()


@pytest.mark.parametrize("family", ["llama", "llama-grouped", "qwen2"])
def test_awq_changes_no_output_but_lowers_the_error_of_rounding(family) -> None:
    torch.manual_seed(0)
    grouped = {"num_key_value_heads": 2 if family != "llama" else 4}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, **grouped}
    if family == "qwen2":
        config = Qwen2Config(**sizes)
        layer, rotary = Qwen2DecoderLayer(config, 0), Qwen2RotaryEmbedding(config)
    else:
        config = LlamaConfig(**sizes)
        layer, rotary = LlamaDecoderLayer(config, 0), LlamaRotaryEmbedding(config)
    config._attn_implementation = "eager"
    for parameter in layer.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    x = torch.randn(1, 40, 64) * torch.logspace(-1, 1.5, 64)
    positions = torch.arange(40)[None]
    mask = torch.full((40, 40), -1e4).triu(1)[None, None]

    def run() -> torch.Tensor:
        with torch.no_grad():
            out = layer(
                x, attention_mask=mask, position_ids=positions, position_embeddings=rotary(x, positions)
            )
        return out[0] if isinstance(out, tuple) else out

    grams: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: grams.update({name: inputs[0][0].T @ inputs[0][0] / 40})
        )
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    before = run()
    for handle in handles:
        handle.remove()
    weights = {name: layer.get_submodule(name).weight.data.clone() for name in grams}
    plain, form = dict(grams), Form(4, 64)
    awq.smooth(layer, grams, lambda name: form)
    assert any(not torch.equal(weights[name], layer.get_submodule(name).weight.data) for name in weights)
    assert torch.allclose(run(), before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))
    for name in ("self_attn.q_proj", "mlp.gate_proj"):
        scaled = layer.get_submodule(name).weight.data
        after = output_error(scaled, METHODS["rtn"].quantize(scaled, None, form).dequantize(), grams[name])
        direct = METHODS["rtn"].quantize(weights[name], None, form).dequantize()
        assert after <= output_error(weights[name], direct, plain[name])


@pytest.mark.parametrize(("bits", "group", "sentence"), [(3, None, "8 or 4"), (4, 48, "32, 64, 128")])
def test_forms_that_do_not_exist(bits, group, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        Form(bits, group)


def test_a_method_that_does_not_exist() -> None:
    with pytest.raises(UnknownNameError, match="'gptq'"):
        find_method("gpt")
