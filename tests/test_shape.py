"""Sizes read from configurations: against published counts, and against the models that torch builds."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pulse_edge.commands._plan import plan, read_model
from pulse_edge.errors import CheckpointError
from pulse_edge.model.checkpoint import load_model, resolve_model
from pulse_edge.shape import read_shape, shape_of


def test_pulse_7b_has_the_numbers_of_the_released_checkpoint():
    shape = read_model("pulse-7b")
    assert shape.parameters == 7_062_906_880
    assert (shape.tower.parameters, shape.tower.projector) == (303_507_456, 20_979_712)
    assert shape.tower.run_parameters == 290_909_184  # layer 24 and the norm behind it never run
    assert shape.linear_parameters + 2 * shape.table + shape.small == 6_738_415_616
    assert 2 * shape.kv_per_token == 524_288  # 0.5 MiB of fp16 a token
    assert shape.tower.tokens == 576


@pytest.mark.parametrize("name", ["pulse-7b", "pulse-2b", "pulse-0.5b"])
def test_recipes_have_the_parameters_and_operations_that_torch_counts(name):
    from pulse_edge.train.dry_run import vision_flops
    from pulse_edge.train.sft_recipe import empty_model, read_sft_recipe

    recipe = read_sft_recipe(name)
    model, shape = empty_model(recipe.model), read_model(name)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.tower.tokens * 5 == (336 // model.config.vision_config.patch_size) ** 2 * 5
    # torch runs every layer, the shape only those that are read: ask it for the last one.
    config = {
        "text_config": recipe.model.text,
        "vision_config": recipe.model.vision,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }
    whole = shape_of(config, name).tower
    projected = 2 * sum(p.numel() for p in model.model.multi_modal_projector.parameters() if p.ndim == 2)
    assert 5 * (whole.flops - projected * whole.tokens) == pytest.approx(vision_flops(model), rel=0.005)


def test_the_shipped_model_is_read_from_its_folder():
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    folder = resolve_model("pulse-nano")
    shape, model = read_shape(folder), load_model(folder, "float32")
    # image_newline is a parameter of every such model, and the shape counts it too
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.tied
    assert shape.context == model.config.text_config.max_position_embeddings
    # the counter does not know the CPU's fused attention
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encode_images(torch.zeros(5, 3, 336, 336))
    assert 5 * shape.tower.flops == pytest.approx(counter.get_total_flops(), rel=0.005)


@pytest.mark.parametrize("name", ["pulse_tiny_flat", "pulse_tiny_spatial_unpad"])
def test_the_released_layout_is_read(shared, name):
    folder = shared / "golden" / "model" / name
    model, shape = load_model(folder), read_shape(folder)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.heads == model.config.text_config.num_attention_heads
    assert shape.tower.tokens == 576


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(["llama", "qwen2"]),
    heads=st.sampled_from([2, 4, 8]),
    groups=st.sampled_from([1, 2]),
    width=st.sampled_from([4, 8]),
    layers=st.integers(1, 3),
    ffn=st.integers(3, 70),
    vocab=st.integers(10, 90),
    tied=st.booleans(),
    attention_bias=st.booleans(),
    mlp_bias=st.booleans(),
)
def test_any_decoder_has_the_parameters_that_transformers_builds(
    kind, heads, groups, width, layers, ffn, vocab, tied, attention_bias, mlp_bias
):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    text = {
        "hidden_size": heads * width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // groups,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }
    if kind == "llama":
        text |= {"attention_bias": attention_bias, "mlp_bias": mlp_bias}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **text))
    config = {
        "text_config": {"model_type": kind, **text},
        "vision_config": {
            "model_type": "pulse_conv",
            "widths": [4],
            "strides": [4],
            "depths": [0],
            "hidden_size": 4,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    shape = shape_of(config, "any")
    own = shape.parameters - shape.tower.parameters - shape.tower.projector - shape.hidden
    assert own == sum(p.numel() for p in model.parameters())


@pytest.fixture
def copied(small_checkpoint, tmp_path):
    """The small checkpoint's configuration and weights, to damage."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((small_checkpoint / name).read_bytes())
    return tmp_path


def test_a_copy_is_read(copied, small_checkpoint):
    assert read_shape(copied).parameters == read_shape(small_checkpoint).parameters


@pytest.mark.parametrize("content", [b"", b"[]", b"nothing", b"\xff\xfe", b'{"model_type": "bert"}'])
def test_a_configuration_that_is_none_is_refused(copied, content):
    (copied / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        read_shape(copied)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("text_config", "hidden_size", None),
        ("text_config", "hidden_size", "wide"),
        ("text_config", "num_attention_heads", 0),
        ("text_config", "model_type", "mamba"),
        ("vision_config", "model_type", "siglip_vision_model"),
        ("vision_config", "widths", 3),
        ("vision_config", "strides", [0, 1, 1, 1]),
    ],
)
def test_a_field_that_makes_no_model_is_refused(copied, part, field, value):
    config = json.loads((copied / "config.json").read_text())
    config[part][field] = value
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        read_shape(copied)


def test_missing_weights_are_refused(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors"):
        read_shape(copied)


def test_a_truncated_shard_is_refused(copied):
    file = copied / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="cut short"):
        read_shape(copied)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_checkpoint_that_holds_integers_has_the_shape_of_the_floats(shared, tmp_path, bits):
    """In the released layout, whose tower's shape is read off its weights."""
    from safetensors.numpy import save_file

    from pulse_edge.model.quantized import QuantizedWeight
    from pulse_edge.model.weights import open_weights

    folder = shared / "golden" / "model" / "pulse_tiny_flat"
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    arrays = {}
    for name, tensor in open_weights(folder).items():
        weight = tensor.float().numpy()
        if weight.ndim == 2 and weight.shape[1] % 2 == 0 and "position" not in name:
            levels = np.zeros(weight.shape, np.int8)
            scale = np.ones((len(weight), 1), np.float16)
            arrays |= QuantizedWeight(bits, levels, scale).stored(name)
        else:
            arrays[name] = weight
    save_file(arrays, tmp_path / "model.safetensors")
    found, floats = read_shape(tmp_path), read_shape(folder)
    assert (found.integers, floats.integers) == (f"int{bits}", None)
    assert replace(found, integers=None, name="x") == replace(floats, name="x")
    planned = plan(str(tmp_path), device="orin-nano-8gb")
    assert planned["setup"]["precision"] == f"int{bits}"
    assert plan(str(tmp_path), device="orin-nano-8gb", precision="fp16")["setup"]["precision"] == "fp16"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=64),
        st.dictionaries(
            st.text(max_size=8),
            st.recursive(
                st.none() | st.integers() | st.text(max_size=4),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["shape", "data_offsets", "dtype"]), inner, max_size=3)
                ),
                max_leaves=6,
            ),
            max_size=3,
        ),
    )
)
def test_no_header_leads_to_anything_but_a_checkpoint_error(copied, content):
    if isinstance(content, dict):
        text = json.dumps(content).encode()
        content = struct.pack("<Q", len(text)) + text
    (copied / "model.safetensors").write_bytes(content)
    try:
        shape = read_shape(copied)
    except CheckpointError:
        return
    assert shape.layers == 2  # a header that is one; what it lacks, loading the weights will tell
