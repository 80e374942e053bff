"""The stateful decoder, played by milrun, against transformers' own models."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from pulse_edge.export.coreml import layout as coreml_layout
from pulse_edge.export.coreml.decoder import MASKED, build_chunk
from pulse_edge.export.coreml.layout import Source, plan_chunks, plan_layout
from pulse_edge.export.coreml.package import convert, finish, program
from pulse_edge.export.milrun import load_package
from pulse_edge.export.shape import DecoderShape, decoder_shape
from pulse_edge.export.weights import precision
from pulse_edge.model.reference import cache_argument

FP32, FP16 = precision("fp32", "coreml"), precision("fp16", "coreml")
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 160, "initializer_range": 0.15,
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


def source(model):
    state = model.state_dict()
    return Source(lambda name: state[name if name in state else f"model.{name}"].numpy())


class Played:
    """The packages of a decoder, called as an app calls them."""

    def __init__(self, model, how, folder, ffn=None):
        self.layout = plan_layout(decoder_shape(model.config), model.config.max_position_embeddings, how)
        self.packages = []
        for chunk in plan_chunks(self.layout.shape, ffn or model.config.intermediate_size):
            functions, _ = build_chunk(self.layout, chunk, source(model), how)
            path = folder / f"{chunk.name}.mlpackage"
            finish(convert(program(functions), path), path)
            self.packages.append(load_package(path, "fp16"))
        self.states = [package.new_state() for package in self.packages]
        self.position = 0

    def read(self, rows):
        logits = None
        while len(rows):
            size = 1 if len(rows) == 1 else self.layout.prefill
            part, rows = rows[:size], rows[size:]
            flow = {"inputs_embeds": np.zeros((1, size, part.shape[1]), np.float32)}
            flow["inputs_embeds"][0, : len(part)] = part
            # What stands in the filling must not matter.
            flow["inputs_embeds"][0, len(part) :] = 7.0
            at = self.position + np.arange(size)[:, None]
            mask = np.where(np.arange(self.layout.cache) <= at, 0, MASKED)[None, None].astype(np.float32)
            for package, state in zip(self.packages, self.states, strict=True):
                given = {"position": np.array([self.position], np.int32), "mask": mask, **flow}
                if "last" in package.inputs("prefill" if size > 1 else "decode"):
                    given["last"] = np.array([len(part) - 1], np.int32)
                made = package.run("prefill" if size > 1 else "decode", given, state)
                flow = {name.removesuffix("_out"): value for name, value in made.items()}
            self.position += len(part)
            logits = flow["logits"][0]
        return logits


class Reference:
    def __init__(self, model):
        self.model, self.cache = model, DynamicCache()

    def read(self, rows):
        embeds = torch.from_numpy(rows[None])
        with torch.inference_mode():
            cache = cache_argument(self.model, self.cache)
            return self.model(inputs_embeds=embeds, **cache).logits[0, -1].numpy()


@pytest.mark.parametrize("member", FAMILY)
def test_prefill_and_steps_equal_transformers(member, tmp_path):
    """40 rows in two calls of `prefill`, the second filled up, then 64 calls of `decode` on their state."""
    kind, config = FAMILY[member]
    model = build(kind, config)
    played, reference = Played(model, FP32, tmp_path), Reference(model)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 64)).astype(np.float32)
    assert np.abs(played.read(rows) - reference.read(rows)).max() < 1e-4
    for _ in range(64):
        row = rng.standard_normal((1, 64)).astype(np.float32)
        assert np.abs(played.read(row) - reference.read(row)).max() < 1e-4


@pytest.fixture(scope="module")
def llama():
    return build(*FAMILY["shared keys, tied"])


def test_chunks_pass_rows_on_and_give_the_same(llama, tmp_path, monkeypatch):
    whole = Played(llama, FP32, tmp_path)
    monkeypatch.setattr(coreml_layout, "_CHUNK", 1)
    cut = Played(llama, FP32, tmp_path)
    assert [package.path.stem for package in cut.packages] == ["decoder-0", "decoder-1"]
    assert list(cut.packages[0].outputs("decode")) == ["hidden_out"]
    rows = np.random.default_rng(1).standard_normal((21, 64)).astype(np.float32)
    for part in (rows[:20], rows[20:]):
        assert np.abs(whole.read(part) - cut.read(part)).max() < 1e-5


def test_the_whole_context_can_be_filled_and_what_lies_behind_is_forgotten(llama, tmp_path):
    """The last call's filling reaches behind the context; a second reading of the same rows is the same."""
    played = Played(llama, FP32, tmp_path)
    rows = np.random.default_rng(2).standard_normal((160, 64)).astype(np.float32)
    played.read(rows[:158])
    full = played.read(rows[158:])
    assert played.position == 160
    played.position = 30
    again = played.read(rows[30:])
    assert np.abs(full - again).max() < 1e-5
    assert np.abs(full - Reference(llama).read(rows)).max() < 1e-4


def test_half_precision_is_near_at_high_positions_and_with_large_channels(tmp_path):
    """Rotary tables of float16 would be wrong at position 2,900; a channel of 900 overflows when squared."""
    config = LlamaConfig(**{**SMALL, "max_position_embeddings": 3000, "num_hidden_layers": 1})
    model = build(LlamaForCausalLM, config)
    played = Played(model, FP16, tmp_path)
    rows = np.random.default_rng(3).standard_normal((2900, 64)).astype(np.float32)
    rows[::50, 3] = 900
    states = Reference(model)
    expected = [states.read(part) for part in (rows[:2890], rows[2890:])]
    made = played.read(rows[:2890]), played.read(rows[2890:])
    for a, b in zip(made, expected, strict=True):
        assert np.abs(a.astype(np.float32) - b).max() < 0.02


def test_weights_are_stored_once_for_both_functions(llama, tmp_path):
    Played(llama, FP16, tmp_path)
    weights = tmp_path / "decoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    parameters = sum(value.numel() for value in llama.parameters())
    assert weights.stat().st_size < 1.2 * 2 * parameters  # rotary tables, and a header for each entry


def test_no_reshape_and_transpose_stand_before_a_state(llama, tmp_path):
    """coremltools issues 2275 and 2278: new keys and values are cut by heads and stacked instead."""
    played = Played(llama, FP16, tmp_path)
    operations = played.packages[0].operations("prefill")
    layers, queries, answers = 2, 1, 1
    assert operations["stack"] == 2 * layers  # keys and values
    assert operations["transpose"] == layers * (queries + answers)
    assert played.packages[0].operations("decode")["transpose"] == 0


@pytest.mark.parametrize(
    ("layers", "ffn", "heads", "expected"),
    [(32, 11008, 32, 8), (28, 8960, 12, 2), (24, 4864, 14, 1)],
    ids=["7b", "2b", "0.5b"],
)
def test_large_decoders_are_cut(layers, ffn, heads, expected):
    kv = {32: 32, 12: 2, 14: 2}[heads]
    dim = 64 if heads == 14 else 128
    shape = DecoderShape(layers, heads * dim, heads, kv, dim, 1000, 4096, 1e4, 1e-5)
    chunks = plan_chunks(shape, ffn)
    assert len(chunks) == expected
    assert [chunk.start for chunk in chunks[1:]] == [chunk.stop for chunk in chunks[:-1]]
    assert (chunks[0].start, chunks[-1].stop) == (0, layers)
    assert Counter(chunk.last for chunk in chunks)[True] == 1


def test_lengths_suit_the_engine():
    shape = DecoderShape(2, 64, 4, 2, 32, 100, 4096, 1e4, 1e-5)
    for name, rows in (("fp16", 32), ("int8", 32), ("int4", 128)):
        layout = plan_layout(shape, 757, precision(name, "coreml"))
        assert layout.prefill == rows
        assert layout.cache % 32 == 0
        assert layout.cache >= layout.context + layout.prefill - 1
