"""Rounding to integers: the rule itself, what lies in the file, and what the graph computes with it."""

from __future__ import annotations

import copy
import hashlib

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from pulse_edge.errors import UnknownNameError, UserError
from pulse_edge.export import linear as module
from pulse_edge.export.decoder import plan_embedding
from pulse_edge.export.rounding import pack_pairs, round_rows, to_float16, to_float32
from pulse_edge.export.shape import decoder_shape
from pulse_edge.export.weights import int4_block, precision
from pulse_edge.model.reference import cache_argument

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def rounded(matrix, block, levels):
    """Integers and scales of rows [n, K], as signed numbers."""
    low, scale = round_rows(matrix.copy(), block, levels)
    return low.view(np.int8).astype(int), scale


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([(64, 7), (128, 7), (256, 127)]), st.floats(1e-6, 1e3),
    st.integers(1, 33),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_every_weight_is_within_half_a_step(seed, form, size, n):
    block, levels = form
    matrix = (size * np.random.default_rng(seed).standard_t(3, (n, 256))).astype(np.float32)
    integers, scale = rounded(matrix, block, levels)
    assert np.abs(integers).max() <= levels
    np.testing.assert_array_equal(scale, scale.astype(np.float16))
    spread = np.repeat(scale, block, axis=1)
    # The scale is a rounded number, so the largest weight of a block may lie a little outside.
    slack = levels * 2.0**-11 + 1e-4
    assert (np.abs(matrix - integers * spread) <= (0.5 + slack) * spread).all()
    largest = np.abs(matrix).reshape(n, -1, block).max(axis=2)
    fits = largest / levels > 7e-5  # above the smallest normal float16, no level is wasted
    assert (np.abs(integers).reshape(n, -1, block).max(axis=2)[fits] == levels).all()


def test_a_block_of_zeros_stays_zero():
    matrix = np.random.default_rng(0).normal(size=(50, 128)).astype(np.float32)
    matrix[7, :64] = 0
    integers, scale = rounded(matrix, 64, 7)
    assert not integers[7, :64].any()
    assert np.isfinite(scale).all()


def test_every_bfloat16_becomes_the_float16_that_a_cast_makes():
    raw = np.arange(1 << 16, dtype=np.uint16)
    wide = torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
    numbers = ~wide.isnan().numpy()
    np.testing.assert_array_equal(to_float32(raw, "BF16")[numbers], wide.float().numpy()[numbers])
    ours, theirs = to_float16(raw, "BF16"), wide.half().numpy()
    np.testing.assert_array_equal(ours.view(np.uint16)[numbers], theirs.view(np.uint16)[numbers])
    assert np.isnan(ours[~numbers]).all()


def test_pairs_lie_as_onnx_packs_int4():
    values = np.random.default_rng(1).integers(-8, 8, (6, 10)).astype(np.int8)
    packed = pack_pairs(values.view(np.uint8)).T.tobytes()  # as columns of a matrix [10, 6]
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=[10, 6], raw_data=packed)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), values.T)


@pytest.mark.parametrize("name", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_pieces_and_panels_do_not_show(tmp_path, stored, monkeypatch, in_memory, name, kind):
    """However small the pieces and panels, the file is the same; and the same for every type of source."""
    from pulse_edge.export.onnx_writer import GraphWriter

    exact = torch.randn(54, 256, generator=torch.Generator().manual_seed(3)).bfloat16()
    sources = {
        "F32": exact.float().numpy(), "F16": exact.half().numpy(),
        "BF16": exact.view(torch.int16).numpy().view(np.uint16),
    }  # fmt: skip
    contents = set()
    for chunk, panel in ((1 << 20, 96 << 20), (700, 96 << 20), (700, 5000), (1 << 20, 5000)):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        monkeypatch.setattr(module, "PANEL", panel)
        writer = GraphWriter(tmp_path / "w.onnx", "w", 21)
        x = writer.input("x", np.float16, [1, 256])
        weights = in_memory({"model.w.weight": sources[kind]})
        module.linear(writer, x, "w", weights, "text.w.weight", precision(name, "jetson"))
        writer.output("w", np.float16, [1, 54])
        writer.save()
        digest = writer.fill()
        written = (tmp_path / "w.onnx.data").read_bytes()
        assert digest in (None, hashlib.sha256(written).hexdigest())
        assert digest is not None or panel < 1 << 20  # in order, unless in columns
        contents.add((tmp_path / "w.onnx.data").read_bytes())
    assert len(contents) == 1
    arrays = stored(tmp_path / "w.onnx")
    if name == "fp16":
        np.testing.assert_array_equal(arrays["w.weight"], exact.half().numpy().T)
    else:
        levels, block = (7, 128) if name == "int4" else (127, 256)
        integers, scale = rounded(sources["F32"], block, levels)
        np.testing.assert_array_equal(arrays["w.integers"], integers.T)
        np.testing.assert_array_equal(arrays["w.scale"].reshape(-1, 54), scale.T.astype(np.float16))


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
    model.lm_head.weight.data = torch.from_numpy(arrays["lm_head.weight"].astype(np.float32))
    return model


# The bound for float16 activations is relative to the spread of the logits.
@pytest.mark.parametrize(
    ("target", "name", "bound"),
    [("onnx", "int8", 1e-5), ("onnx", "int4", 1e-5), ("jetson", "fp16", 3e-3), ("jetson", "int8", 3e-3),
     ("jetson", "int4", 3e-3)],
)  # fmt: skip
def test_graph_equals_torch_with_the_weights_in_the_file(
    llama, tmp_path, run, stored, target, name, bound, in_memory, write_decoder
):
    how = precision(name, target)
    state = llama.state_dict()
    kept = write_decoder(
        tmp_path / "decoder.onnx", decoder_shape(llama.config),
        in_memory(state), how,
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
def test_integers_in_the_file_are_the_nearest(
    llama, tmp_path, stored, name, levels, in_memory, write_decoder
):
    """Computed anew in float64, from the rule: scale = float16(largest / levels), integer = nearest."""
    state = llama.state_dict()
    write_decoder(
        tmp_path / "decoder.onnx", decoder_shape(llama.config),
        in_memory(state), precision(name, "jetson"),
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


def test_dequantisation_is_in_the_portable_form(llama, tmp_path, in_memory, write_decoder):
    state = llama.state_dict()
    for name, form in (("int8", {"axis": 1}), ("int4", {"axis": 0, "block_size": 128})):
        write_decoder(
            tmp_path / "decoder.onnx", decoder_shape(llama.config),
            in_memory(state), precision(name, "onnx"),
        )  # fmt: skip
        graph = onnx.load(str(tmp_path / "decoder.onnx"), load_external_data=False).graph
        nodes = [node for node in graph.node if node.op_type == "DequantizeLinear"]
        assert len(nodes) == (14 if name == "int8" else 12)
        for node in nodes:
            assert len(node.input) == 2  # no zero point
            assert {a.name: a.i for a in node.attribute} == form
            readers = [n for n in graph.node if node.output[0] in n.input]
            assert [n.op_type for n in readers] == ["MatMul"]


def test_embeddings_and_head_are_not_rounded_to_integers(llama, tmp_path, stored, in_memory):
    table = llama.state_dict()["model.embed_tokens.weight"].numpy()
    for name, kind in (("fp32", np.float32), ("int8", np.float16), ("int4", np.float16)):
        writer, _ = plan_embedding(
            tmp_path / "embed.onnx", in_memory(llama.state_dict()), precision(name, "onnx")
        )
        writer.fill()
        np.testing.assert_array_equal(
            stored(tmp_path / "embed.onnx")["embed_tokens.weight"], table.astype(kind)
        )
