"""Damaged and foreign checkpoints: each is refused in one clear sentence, and nothing is made up."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from pulse_edge.errors import CheckpointError, MissingExtraError
from pulse_edge.model.checkpoint import load_model

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
FIRST, SECOND, THIRD = (f"model-0000{place}-of-00003.safetensors" for place in (1, 2, 3))


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def remove(name):
    return lambda folder: (folder / name).unlink()


def edit(name, **changes):
    def inflict(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))

    return inflict


def drop(pattern):
    """Remove the weights whose names match from the shards and from the index."""

    def inflict(folder):
        where = json.loads((folder / INDEX).read_text())["weight_map"]
        kept = {name: shard for name, shard in where.items() if not re.search(pattern, name)}
        for shard in set(where.values()):
            stored = load_file(folder / shard)
            save_file({name: stored[name].clone() for name in stored if name in kept}, folder / shard)
        (folder / INDEX).write_text(json.dumps({"weight_map": kept}))

    return inflict


def add(**tensors):
    return lambda folder: save_file({**load_file(folder / THIRD), **tensors}, folder / THIRD)


def cut(folder):
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-1000])


def no_weights(*others):
    def inflict(folder):
        for file in folder.glob("model*"):
            file.unlink()
        for name in others:
            (folder / name).write_bytes(b"x")

    return inflict


EXTRA = {"model.mm_resampler.weight": torch.zeros(2)}
DAMAGE = {
    "no config": (remove(CONFIG), "config.json cannot be read"),
    "config cut": (write(CONFIG, b'{"model_type": '), "config.json is not valid JSON"),
    "config a list": (write(CONFIG, b"[]"), "holds no JSON object"),
    "config binary": (write(CONFIG, b"\xff\xfe\x00"), "config.json is not valid JSON"),
    "other model": (edit(CONFIG, model_type="llama"), "model_type 'llama'"),
    "LLaVA-1.5": (edit(CONFIG, image_aspect_ratio="pad"), "image_aspect_ratio to 'pad'"),
    "other projector": (edit(CONFIG, mm_projector_type="linear"), "mm_projector_type to 'linear'"),
    "other merge": (edit(CONFIG, mm_patch_merge_type="spatial"), "merge type to 'spatial'"),
    "other grids": (edit(CONFIG, image_grid_pinpoints=[[336, 672]]), "the grids"),
    "nonsense grids": (edit(CONFIG, image_grid_pinpoints=7), "does not describe a model"),
    "nonsense size": (edit(CONFIG, hidden_size="wide"), "does not describe a model"),
    "other size": (edit(CONFIG, intermediate_size=128), r"\[176, 64\], but .* asks for \[128, 64\]"),
    "more layers": (edit(CONFIG, num_hidden_layers=3), r"lacks 9 weight\(s\): text.layers.2"),
    "fewer layers": (edit(CONFIG, num_hidden_layers=1), r"has no use for 9 weight\(s\)"),
    "shard missing": (remove(SECOND), f"{SECOND} is missing"),
    "shard cut": (cut, f"{SECOND} is damaged or cut short"),
    "shard empty": (write(FIRST, b""), f"{FIRST} is damaged or cut short"),
    "shard twice": (lambda folder: shutil.copy(folder / FIRST, folder / SECOND), "twice"),
    "index cut": (write(INDEX, b"{"), "index.json is not valid JSON"),
    "index empty": (write(INDEX, b"{}"), "has no weight_map"),
    "index outside": (edit(INDEX, weight_map={"a": "../a.safetensors"}), "outside its folder"),
    "index promises": (edit(INDEX, weight_map={"a": FIRST}), r"lacks 1 weight\(s\): a"),
    "weight missing": (drop(r"^model\.norm"), r"lacks 1 weight\(s\): text.norm.weight"),
    "weight left over": (add(**EXTRA), r"no use for 1 weight\(s\): text.mm_resampler.weight"),
    "tower missing": (drop("vision_tower"), "no CLIP vision tower"),
    "no weights": (no_weights(), "holds no weights.*Download"),
    "pickled weights": (no_weights("pytorch_model.bin"), "holds no weights.*Convert"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_in_one_clear_sentence(copy, damage):
    inflict, words = DAMAGE[damage]
    inflict(copy)
    with pytest.raises(CheckpointError) as caught:
        load_model(copy)
    message = str(caught.value)
    assert re.search(words, message), message
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message) < 400


def test_a_missing_newline_matters_only_where_it_is_used(copy):
    drop("image_newline")(copy)
    assert load_model(copy).config.merge == "flat"
    edit(CONFIG, mm_patch_merge_type="spatial_unpad")(copy)
    with pytest.raises(CheckpointError, match="newline"):
        load_model(copy)


def test_constants_that_old_versions_stored_are_ignored(copy):
    expected = {name: tensor.clone() for name, tensor in load_model(copy).state_dict().items()}
    tower = "model.vision_tower.vision_tower.vision_model."
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    add(**frequencies, **{f"{tower}embeddings.position_ids": torch.zeros(1, 577)})(copy)
    again = load_model(copy).state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_without_torch_the_extra_is_named(copy, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pulse-edge\[train\]"):
        load_model(copy)
