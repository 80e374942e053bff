"""Rounding to integers: the rule itself, what lies in the file, and what the graph computes with it."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from pulse_edge.errors import UnknownNameError, UserError
from pulse_edge.export import weights as module
from pulse_edge.export.decoder import write_decoder, write_embedding
from pulse_edge.export.shape import decoder_shape
from pulse_edge.export.weights import int4_block, precision, quantize
from pulse_edge.model.reference import cache_argument

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([(64, 7), (128, 7), (256, 127)]), st.floats(1e-6, 1e3),
    st.integers(1, 33),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_every_weight_is_within_half_a_step(seed, form, size, columns):
    block, levels = form
    matrix = (size * np.random.default_rng(seed).standard_t(3, (256, columns))).astype(np.float32)
    integers, scale = quantize(matrix, block, levels)
    assert np.abs(integers).max() <= levels
    np.testing.assert_array_equal(scale, scale.astype(np.float16))
    spread = np.repeat(scale, block, axis=0)
    # The scale is a rounded number, so the largest weight of a block may lie a little outside.
    slack = levels * 2.0**-11 + 1e-4
    assert (np.abs(matrix - integers * spread) <= (0.5 + slack) * spread).all()
    largest = np.abs(matrix).reshape(-1, block, columns).max(axis=1)
    fits = largest / levels > 7e-5  # above the smallest normal float16, no level is wasted
    assert (np.abs(integers).reshape(-1, block, columns).max(axis=1)[fits] == levels).all()


def test_a_block_of_zeros_stays_zero_and_chunks_do_not_show(monkeypatch):
    matrix = np.random.default_rng(0).normal(size=(128, 50)).astype(np.float32)
    matrix[:64, 7] = 0
    whole = quantize(matrix, 64, 7)
    assert not whole[0][:64, 7].any()
    assert np.isfinite(whole[1]).all()
    monkeypatch.setattr(module, "_CHUNK", 300)
    for a, b in zip(whole, quantize(matrix, 64, 7), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "block"), [((256, 8), 128), ((192, 8), 64), ((96, 8), None), ((128, 7), None), ((32, 8), None)]
)
def test_int4_takes_the_largest_block_that_tensorrt_takes(shape, block):
    assert int4_block(shape) == block


def test_precisions_and_targets():
    assert precision("int4", "onnx").compute is np.float32
    assert precision("int4", "jetson").compute is np.float16
    assert precision("fp16", "onnx").compute is np.float16
    with pytest.raises(UnknownNameError, match="Did you mean 'int8'"):
        precision("int88", "onnx")
    with pytest.raises(UserError, match="fp16, int8 or int4"):
        precision("fp32", "jetson")


@pytest.fixture(scope="module")
def llama():
    """K is 128 for q, k, v, gate and up, 256 for o, and 96, which no block divides, for down."""
    torch.manual_seed(6)
    config = LlamaConfig(
        hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, head_dim=64,
        num_key_value_heads=2, vocab_size=100, max_position_embeddings=64, initializer_range=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def dequantised(model, arrays, how):
    """A copy of the model whose weights are computed from the numbers in the file."""
    model = copy.deepcopy(model)
    layers = dict(model.named_modules())
    for i in range(2):
        for name in LAYERS:
            name = f"layers.{i}.{'mlp' if name[0] in 'gud' else 'self_attn'}.{name}"
            if f"{name}.integers" in arrays:
                integers, scale = arrays[f"{name}.integers"], arrays[f"{name}.scale"].astype(np.float32)
                assert how.bits < 16
                scale = np.repeat(scale, len(integers) // len(scale), axis=0) if scale.ndim == 2 else scale
                matrix = integers * scale
            else:
                matrix = arrays[f"{name}.weight"].astype(np.float32)
            layers[f"model.{name}"].weight.data = torch.from_numpy(matrix.T.copy())
    model.lm_head.weight.data = torch.from_numpy(arrays["lm_head.weight"].astype(np.float32).T.copy())
    return model


# The bound for float16 activations is relative to the spread of the logits.
@pytest.mark.parametrize(
    ("target", "name", "bound"),
    [("onnx", "int8", 1e-5), ("onnx", "int4", 1e-5), ("jetson", "fp16", 3e-3), ("jetson", "int8", 3e-3),
     ("jetson", "int4", 3e-3)],
)  # fmt: skip
def test_graph_equals_torch_with_the_weights_in_the_file(llama, tmp_path, run, stored, target, name, bound):
    how = precision(name, target)
    state = llama.state_dict()
    kept = write_decoder(
        tmp_path / "decoder.onnx", decoder_shape(llama.config),
        lambda n: state[n if n in state else f"model.{n}"].numpy(), how,
    )  # fmt: skip
    assert kept == ([f"layers.{i}.mlp.down_proj" for i in range(2)] if name == "int4" else [])
    arrays = stored(tmp_path / "decoder.onnx")
    model = dequantised(llama, arrays, how)
    step, cache, past = run(tmp_path / "decoder.onnx"), DynamicCache(), None
    rng = np.random.default_rng(7)
    for length in (6, *[1] * 16):
        embeds = rng.normal(size=(1, length, 128)).astype(np.float32)
        with torch.inference_mode():
            output = model(inputs_embeds=torch.from_numpy(embeds), **cache_argument(model, cache))
            expected = output.logits[0, -1].numpy()
        logits, past = step(embeds, past)
        assert np.abs(logits - expected).max() < bound * np.ptp(expected)


@pytest.mark.parametrize(("name", "levels"), [("int8", 127), ("int4", 7)])
def test_integers_in_the_file_are_the_nearest(llama, tmp_path, stored, name, levels):
    """Computed anew in float64, from the rule: scale = float16(largest / levels), integer = nearest."""
    state = llama.state_dict()
    write_decoder(
        tmp_path / "decoder.onnx", decoder_shape(llama.config),
        lambda n: state[n if n in state else f"model.{n}"].numpy(), precision(name, "jetson"),
    )  # fmt: skip
    arrays = stored(tmp_path / "decoder.onnx")
    for layer, block in (("layers.0.self_attn.o_proj", 256), ("layers.1.mlp.up_proj", 128)):
        weight = state[f"model.{layer}.weight"].double().numpy().T
        block = 128 if name == "int4" else block
        blocks = weight.reshape(-1, block, weight.shape[1])
        scale = (np.abs(blocks).max(axis=1).astype(np.float32) / np.float32(levels)).astype(np.float16)
        nearest = np.rint(blocks / scale[:, None].astype(np.float64)).clip(-levels, levels)
        ours = arrays[f"{layer}.integers"].reshape(blocks.shape)
        # Where the quotient is half-way between two integers, float32 may fall to the other side.
        assert (ours != nearest).mean() < 1e-4
        assert np.abs(ours - nearest).max() <= 1
        np.testing.assert_array_equal(arrays[f"{layer}.scale"].reshape(scale.shape), scale)


def test_dequantisation_is_in_the_portable_form(llama, tmp_path):
    state = llama.state_dict()
    for name, form in (("int8", {"axis": 1}), ("int4", {"axis": 0, "block_size": 128})):
        write_decoder(
            tmp_path / "decoder.onnx", decoder_shape(llama.config),
            lambda n: state[n if n in state else f"model.{n}"].numpy(), precision(name, "onnx"),
        )  # fmt: skip
        graph = onnx.load(str(tmp_path / "decoder.onnx"), load_external_data=False).graph
        nodes = [node for node in graph.node if node.op_type == "DequantizeLinear"]
        assert len(nodes) == (14 if name == "int8" else 12)
        for node in nodes:
            assert len(node.input) == 2  # no zero point
            assert {a.name: a.i for a in node.attribute} == form
            readers = [n for n in graph.node if node.output[0] in n.input]
            assert [n.op_type for n in readers] == ["MatMul"]


def test_embeddings_and_head_are_not_rounded_to_integers(llama, tmp_path, stored):
    table = llama.state_dict()["model.embed_tokens.weight"].numpy()
    for name, kind in (("fp32", np.float32), ("int8", np.float16), ("int4", np.float16)):
        write_embedding(tmp_path / "embed.onnx", table, precision(name, "onnx"))
        np.testing.assert_array_equal(
            stored(tmp_path / "embed.onnx")["embed_tokens.weight"], table.astype(kind)
        )
