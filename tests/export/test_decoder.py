"""The hand-built decoder graph against transformers' own models."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from pulse_edge.errors import CheckpointError, UserError
from pulse_edge.export.shape import decoder_shape, rotary_tables
from pulse_edge.export.weights import precision
from pulse_edge.model.reference import cache_argument

FP32, FP16 = precision("fp32", "onnx"), precision("fp16", "jetson")
FUSED, ORT = precision("fp32", "onnx", "trt10.15"), precision("fp32", "onnx", "ort")
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 64, "initializer_range": 0.15,
}  # fmt: skip
FAMILY = {
    "shared keys, tied": (LlamaForCausalLM, LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "one key per query": (LlamaForCausalLM, LlamaConfig(**{**SMALL, "num_key_value_heads": 4})),
    "one key for all": (LlamaForCausalLM, LlamaConfig(**{**SMALL, "num_key_value_heads": 1})),
    "biases": (LlamaForCausalLM, LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True)),
    "narrow heads": (LlamaForCausalLM, LlamaConfig(**SMALL, head_dim=8, rms_norm_eps=1e-3)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SMALL, tie_word_embeddings=True)),
}


def build(kind, config):
    torch.manual_seed(1)
    model = kind(config).eval()
    with torch.no_grad():  # biases and gains are trivial at first
        for name, value in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                value.add_(0.3 * torch.randn_like(value))
    return model


@pytest.fixture(scope="module")
def weights_of(in_memory):
    return lambda model: in_memory(model.state_dict())


def read(model, embeds, cache):
    """Logits [V] behind the last of the embeddings [1, S, H], by transformers."""
    with torch.inference_mode():
        return (
            model(inputs_embeds=torch.from_numpy(embeds), **cache_argument(model, cache))
            .logits[0, -1]
            .numpy()
        )


@pytest.mark.parametrize("how", [FP32, FUSED, ORT], ids=["trt", "trt10.15", "ort"])
@pytest.mark.parametrize("member", FAMILY)
def test_prefill_and_sixteen_steps_equal_transformers(member, how, tmp_path, run, weights_of, write_decoder):
    kind, config = FAMILY[member]
    model = build(kind, config)
    if how is ORT and decoder_shape(config).head_dim % 16:
        with pytest.raises(UserError, match=r"heads are 8 wide.*--profile trt"):
            write_decoder(tmp_path / "decoder.onnx", decoder_shape(config), weights_of(model), how)
        return
    write_decoder(tmp_path / "decoder.onnx", decoder_shape(config), weights_of(model), how)
    step = run(tmp_path / "decoder.onnx")
    rng = np.random.default_rng(2)
    embeds = rng.normal(size=(1, 9, 64)).astype(np.float32)
    cache = DynamicCache()
    expected = read(model, embeds, cache)
    assert np.ptp(expected) > 1  # something to differ in
    logits, past = step(embeds)
    assert np.abs(logits - expected).max() < 1e-4
    for _ in range(16):
        embeds = rng.normal(size=(1, 1, 64)).astype(np.float32)
        expected = read(model, embeds, cache)
        logits, past = step(embeds, past)
        assert np.abs(logits - expected).max() < 1e-4
    keys = past["past_key_values.1.key"]
    assert keys.shape[2] == 25
    np.testing.assert_allclose(keys, cache.layers[1].keys.numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def llama():
    return build(*FAMILY["shared keys, tied"])


def test_reading_in_pieces_equals_reading_at_once(llama, tmp_path, run, weights_of, write_decoder):
    write_decoder(tmp_path / "decoder.onnx", decoder_shape(llama.config), weights_of(llama), FP32)
    step = run(tmp_path / "decoder.onnx")
    embeds = np.random.default_rng(3).normal(size=(1, 20, 64))
    whole, _ = step(embeds)
    past = None
    for start, end in ((0, 7), (7, 8), (8, 20)):
        logits, past = step(embeds[:, start:end], past)
    np.testing.assert_allclose(logits, whole, atol=2e-5)
    other = embeds.copy()
    other[:, 11] += 1  # what came later must not be seen by what came before
    _, changed = step(other)
    difference = np.abs(changed["past_key_values.1.key"] - past["past_key_values.1.key"]).max(axis=(0, 1, 3))
    assert difference[:11].max() < 1e-5
    assert difference[11:].min() > 0.01


def test_half_precision_is_right_at_position_2900(tmp_path, run, weights_of, write_decoder):
    """Rotary angles in float16 would be off by up to a radian there."""
    model = build(LlamaForCausalLM, LlamaConfig(**{**SMALL, "max_position_embeddings": 3072}))
    write_decoder(tmp_path / "decoder.onnx", decoder_shape(model.config), weights_of(model), FP16)
    rng = np.random.default_rng(4)
    embeds = rng.normal(size=(1, 1, 64)).astype(np.float32)
    past = {
        f"past_key_values.{i}.{part}": rng.normal(size=(1, 2, 2900, 16)).astype(np.float16)
        for i in range(2)
        for part in ("key", "value")
    }
    cache = DynamicCache()
    for i in range(2):
        key, value = (torch.from_numpy(past[f"past_key_values.{i}.{p}"]).float() for p in ("key", "value"))
        cache.update(key, value, i)
    expected = read(model, embeds, cache)
    logits, present = run(tmp_path / "decoder.onnx")(embeds, past)
    assert np.abs(logits - expected).max() < 0.02
    rotated, wanted = present["past_key_values.0.key"][0, :, -1], cache.layers[0].keys[0, :, -1].numpy()
    assert np.abs(rotated - wanted).max() < 5e-3 * np.abs(wanted).max()


def test_rotary_tables_equal_transformers(llama):
    shape = decoder_shape(llama.config)
    positions = torch.arange(shape.context)[None]
    cos, sin = llama.model.rotary_emb(torch.zeros(1), positions)
    for ours, theirs in zip(rotary_tables(shape), (cos, sin), strict=True):
        np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-6)


def test_half_precision_norms_do_not_overflow(llama, tmp_path, run, weights_of, write_decoder):
    """In float16 the square of 3,000 is infinite, and the norm's output would be zero."""
    write_decoder(tmp_path / "decoder.onnx", decoder_shape(llama.config), weights_of(llama), FP16)
    embeds = np.random.default_rng(5).normal(size=(1, 4, 64)).astype(np.float32)
    embeds[:, :, 3] = 3000
    expected = read(llama, embeds, DynamicCache())
    logits, _ = run(tmp_path / "decoder.onnx")(embeds)
    assert np.abs(logits - expected).max() < 0.02 * np.ptp(expected)


def test_only_the_last_position_has_logits_and_types_are_as_documented(
    llama, tmp_path, weights_of, write_decoder
):
    for how, kind in ((FP32, "FLOAT"), (FP16, "FLOAT16")):
        write_decoder(tmp_path / "decoder.onnx", decoder_shape(llama.config), weights_of(llama), how)
        graph = onnx.load(str(tmp_path / "decoder.onnx"), load_external_data=False).graph
        ports = {
            port.name: (
                onnx.TensorProto.DataType.Name(port.type.tensor_type.elem_type),
                [d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim],
            )
            for port in [*graph.input, *graph.output]
        }
        assert ports["inputs_embeds"] == ("FLOAT", [1, "S", 64])
        assert ports["logits"] == ("FLOAT", [1, 128])
        assert ports["past_key_values.1.value"] == (kind, [1, 2, "P", 16])
        assert ports["present.0.key"] == (kind, [1, 2, "P+S", 16])
        assert not [t for t in graph.initializer if "attn" in t.name and not t.external_data]


def test_weights_are_read_once_and_not_held(llama, tmp_path, in_memory, write_decoder):
    """The builder must serve a model that does not fit the memory."""
    alive = []

    class Watched(in_memory):
        def rows(self, name, start, stop):
            held = {other for other, ref in alive if ref() is not None and other != name}
            assert not held, f"{held} are held while {name} is asked for"
            array = super().rows(name, start, stop)
            alive.append((name, weakref.ref(array)))
            return array

    weights = Watched(llama.state_dict())
    write_decoder(tmp_path / "decoder.onnx", decoder_shape(llama.config), weights, precision("int4", "onnx"))
    assert len(set(weights.asked)) == len(weights.asked) == 2 * 9 + 2


def test_the_same_weights_give_the_same_bytes(llama, tmp_path, weights_of, write_decoder):
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "decoder.onnx"
        write_decoder(path, decoder_shape(llama.config), weights_of(llama), precision("int4", "jetson"))
        files.append((path.read_bytes(), path.with_name("decoder.onnx.data").read_bytes()))
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mistral"}, "'mistral'"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "scaled rotary"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}, "scaled rotary"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial rotary"),
        ({"use_sliding_window": True}, "sliding windows"),
        ({"num_key_value_heads": 3}, "uneven attention heads"),
    ],
)
def test_what_the_graph_does_not_cover_is_refused(change, named):
    config = SimpleNamespace(**{**LlamaConfig(**SMALL).to_dict(), "model_type": "llama", **change})
    with pytest.raises(CheckpointError, match=named):
        decoder_shape(config)


@pytest.mark.parametrize(
    ("value", "how"), [(np.nan, "fp32"), (1e5, "fp16"), (np.inf, "int8"), (np.nan, "int4")]
)
def test_weights_that_are_not_finite_are_refused(llama, tmp_path, value, how, weights_of, write_decoder):
    weights = weights_of(llama)
    name = "text.layers.1.self_attn.q_proj.weight"
    weights.arrays[name] = weights.arrays[name].copy()
    weights.arrays[name][3, 4] = value
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.self_attn\.q_proj\.\w+ holds values .* not finite"
    ):
        write_decoder(
            tmp_path / "d.onnx", decoder_shape(llama.config), weights, precision(how, "onnx"),
        )  # fmt: skip
