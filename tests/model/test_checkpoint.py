"""Checkpoints: every layout loads alike, a round trip changes nothing, and damage is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pulse_edge.errors import CheckpointError, UnknownNameError, UserError
from pulse_edge.model import checkpoint
from pulse_edge.model.checkpoint import load_model, read_card, resolve_model, save_model
from pulse_edge.model.layouts import canonical, pulse_config
from pulse_edge.model.tokenizer import Tokenizer

FLAT = "pulse_tiny_flat"
CARD = {"name": "tiny", "parent": None, "metrics": [{"stage": "train", "auroc": 0.8}]}


def weights(model):
    return {canonical(name): tensor for name, tensor in model.state_dict().items()}


def same(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    return all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)


def logits(model):
    """Logits of a prompt with one picture of seeded noise."""
    pixels = torch.randn(1, 3, 3, 336, 336, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    with torch.no_grad():
        return model(torch.tensor([[1, 5, -200, 7, 9]]), pixel_values=pixels, image_sizes=[(672, 336)]).logits


@pytest.fixture
def original(golden):
    return load_model(golden / "model" / FLAT)


# --- layouts ------------------------------------------------------------------------------------


def test_the_dtype_is_kept_or_converted(golden, tiny):
    folder = golden / "model" / tiny
    kept, wide = load_model(folder), load_model(folder, dtype="float32")
    assert {tensor.dtype for tensor in kept.state_dict().values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in wide.state_dict().values()} == {torch.float32}
    assert same(kept.float(), wide)
    assert load_model(folder, dtype=torch.float16).dtype == torch.float16
    with pytest.raises(UserError, match="Unknown dtype 'float31'"):
        load_model(folder, dtype="float31")


def test_rotary_frequencies_stay_in_float32(original):
    rotary = original.model.language_model.rotary_emb
    head = original.config.text_config.hidden_size // original.config.text_config.num_attention_heads
    exact = 1.0 / 10000.0 ** (torch.arange(0, head, 2, dtype=torch.float64) / head)
    assert rotary.inv_freq.dtype == torch.float32
    torch.testing.assert_close(rotary.inv_freq.double(), exact, rtol=1e-6, atol=0)


def test_the_towers_shape_is_read_off_its_weights(golden, original):
    stated = json.loads((golden / "model/stock_clip/config.json").read_text())
    tower = original.config.vision_config
    for field in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size",
        "image_size", "num_channels", "hidden_act", "layer_norm_eps",
    ):  # fmt: skip
        assert getattr(tower, field) == stated[field], field


def test_every_weight_is_the_checkpoints_own(golden, tiny):
    stored = {}
    for file in (golden / "model" / tiny).glob("*.safetensors"):
        stored.update({canonical(name): tensor for name, tensor in load_file(file).items()})
    loaded = weights(load_model(golden / "model" / tiny))
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_weights_are_memory_mapped(copy):
    model = load_model(copy)
    mapped = Path("/proc/self/maps").read_text()
    for shard in copy.glob("*.safetensors"):
        assert str(shard) in mapped
    ranges = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in mapped.splitlines()
        if str(copy) in line
    ]
    for name, tensor in model.state_dict().items():
        assert any(low <= tensor.data_ptr() < high for low, high in ranges), name


# Prefixes of: tower, projector, newline, language model, head.
_FILE = ("multi_modal_projector.", "", "language_model.model.", "language_model.")
_RUNTIME = ("model.multi_modal_projector.", "model.", "model.language_model.", "")
STYLES = {
    "transformers 4, file": ("vision_tower.vision_model.", *_FILE),
    "transformers 4, in memory": ("model.vision_tower.vision_model.", *_RUNTIME),
    "transformers 5, file": ("vision_tower.", *_FILE),
    "transformers 5, in memory": ("model.vision_tower.", *_RUNTIME),
}


@pytest.mark.parametrize("style", STYLES)
def test_hugging_face_layouts_load_alike(golden, tiny, tmp_path, style):
    original = load_model(golden / "model" / tiny)
    vision, projector, newline, text, head = STYLES[style]
    names = {
        "vision.": vision, "projector.": projector, "newline": newline + "image_newline",
        "text.": text, "head.": head + "lm_head.",
    }  # fmt: skip
    renamed = {}
    for name, tensor in weights(original).items():
        start = next(start for start in names if name.startswith(start))
        renamed[names[start] + name[len(start) :]] = tensor
    save_file(renamed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**original.config.to_dict(), "model_type": "pulse"}))
    again = load_model(tmp_path)
    assert same(original, again)
    torch.testing.assert_close(logits(again), logits(original), rtol=0, atol=0)


def test_a_llava_next_checkpoint_merges_as_transformers_does(golden, tmp_path):
    original = load_model(golden / "model/pulse_tiny_spatial_unpad")
    original.save_pretrained(tmp_path)
    config = original.config.to_dict()
    del config["merge"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "llava_next"}))
    again = load_model(tmp_path)
    assert again.config.merge == "spatial_unpad"
    torch.testing.assert_close(logits(again), logits(original), rtol=0, atol=0)


def test_rotary_settings_of_transformers_5_are_read_by_both(original):
    text = {
        **original.config.text_config.to_dict(),
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
    }
    text.pop("rope_theta", None)
    raw = {**original.config.to_dict(), "model_type": "pulse", "text_config": text}
    assert pulse_config(raw, {})["text_config"]["rope_theta"] == 5e5


# --- round trip ---------------------------------------------------------------------------------


def test_round_trip_changes_nothing(golden, tiny, tmp_path):
    source = golden / "model" / tiny
    model, tokenizer = load_model(source), Tokenizer.from_folder(source)
    save_model(model, tokenizer, tmp_path / "saved", CARD)
    again = load_model(tmp_path / "saved")
    assert same(model, again)
    assert again.config.merge == model.config.merge
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)
    assert Tokenizer.from_folder(tmp_path / "saved").encode("A</s>B") == tokenizer.encode("A</s>B")
    card = read_card(tmp_path / "saved")
    assert card["schema"] == 1
    assert card["metrics"] == CARD["metrics"]


def test_a_student_survives_the_round_trip(golden, student, tmp_path):
    """Batch statistics, tied embeddings and grouped-query attention included."""
    save_model(student, Tokenizer.from_folder(golden / "tokens"), tmp_path / "student", CARD)
    again = load_model(tmp_path / "student")
    assert same(student, again)
    assert again.config.vision_config.tokens_per_tile == 49
    assert any(
        float(tensor.abs().max()) > 0 for name, tensor in weights(again).items() if "running_mean" in name
    )
    torch.testing.assert_close(logits(again), logits(student), rtol=0, atol=0)
    kept = Tokenizer.from_folder(tmp_path / "student")
    assert (kept.legacy, kept.max_length) == (False, 4096)


def test_half_precision_on_disk_is_float32_in_memory_when_asked(golden, original, tmp_path):
    tokenizer = Tokenizer.from_folder(golden / "model" / FLAT)
    save_model(original.half(), tokenizer, tmp_path / "half", CARD)
    with safe_open(tmp_path / "half/model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    assert load_model(tmp_path / "half", dtype="float32").dtype == torch.float32


def test_tied_embeddings_are_stored_once_and_stay_tied(golden, original, tmp_path):
    original.config.tie_word_embeddings = original.config.text_config.tie_word_embeddings = True
    original.tie_weights()
    save_model(original, Tokenizer.from_folder(golden / "model" / FLAT), tmp_path / "tied", CARD)
    with safe_open(tmp_path / "tied/model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "lm_head" in name]  # noqa: SIM118
    again = load_model(tmp_path / "tied")
    assert again.lm_head.weight is again.get_input_embeddings().weight
    torch.testing.assert_close(logits(again), logits(original), rtol=0, atol=0)


def test_an_own_head_is_kept_though_the_config_says_tied(copy, original):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert same(load_model(copy), original)


def test_a_failed_save_leaves_nothing(golden, original, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(type(original), "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(original, Tokenizer.from_folder(golden / "model" / FLAT), tmp_path / "new", CARD)
    assert not list(tmp_path.iterdir())


# --- cards and names ----------------------------------------------------------------------------


def test_a_checkpoint_of_other_origin_has_an_empty_card(golden):
    card = read_card(golden / "model" / FLAT)
    assert card["name"] == FLAT
    assert card["metrics"] == []
    assert card["parent"] is None


@pytest.mark.parametrize(("text", "words"), [("{", "not valid JSON"), ('{"schema": 2}', "Update pulse-edge")])
def test_a_bad_card_is_refused(tmp_path, text, words):
    (tmp_path / "pulse.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        read_card(tmp_path)


def test_names_of_models(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    (tmp_path / "pulse-nano").mkdir()
    (tmp_path / "pulse-nano/pulse.json").write_text("{}")
    (tmp_path / "samples").mkdir()
    assert resolve_model("pulse-nano") == tmp_path / "pulse-nano"
    assert resolve_model(tmp_path) == tmp_path
    with pytest.raises(UnknownNameError, match="Did you mean 'pulse-nano'"):
        resolve_model("pulse-nanno")
    with pytest.raises(CheckpointError, match="huggingface-cli download"):
        resolve_model("PULSE-ECG/PULSE-7B")
    with pytest.raises(CheckpointError, match="not a folder"):
        resolve_model(tmp_path / "pulse-nano/pulse.json")
