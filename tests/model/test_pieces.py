"""Models larger than the memory: a checkpoint in pieces, and layers that stay integers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import pulse_edge
from pulse_edge import commands
from pulse_edge.errors import CheckpointError
from pulse_edge.model import packed_linear
from pulse_edge.model.checkpoint import load_model
from pulse_edge.model.packed_linear import PackedLinear
from pulse_edge.model.pieces import Pieces


@pytest.fixture(scope="module", params=[(4, False), (8, True)], ids=["int4", "int8 asymmetric"])
def quantised(request, small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bits, asymmetric = request.param
    folder = tmp_path_factory.mktemp("pieces") / "q"
    commands.quantize(
        str(small_checkpoint), folder, bits, 32, asymmetric, method="rtn", embedding=8, lm_head=8,
        accept_loss=True,
    )  # fmt: skip
    return folder


def test_packed_layers_answer_as_dense_ones(quantised, monkeypatch) -> None:
    page = np.random.default_rng(0).integers(0, 256, (200, 260, 3), np.uint8)
    dense = pulse_edge.load(quantised)
    monkeypatch.setattr(packed_linear, "LARGE", 1000)
    small = pulse_edge.load(quantised)
    layers = [m for m in small.backend.model.modules() if isinstance(m, PackedLinear)]
    assert len(layers) == len(packed_names(quantised))
    expected, found = dense.label(page), small.label(page)
    assert max(abs(expected[name] - found[name]) for name in expected) < 1e-6
    held = sum(part.numel() * part.element_size() for layer in layers for part in layer.parts.values())
    weights = load_model(quantised).model.language_model.layers[0].self_attn.q_proj.weight.numel()
    assert held < 2 * 14 * 48 * 48 * 2 + 14 * weights  # far from the 4 bytes of a float


def packed_names(folder: Path) -> list[str]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return [name for name in index if name.endswith(".integers") and ".layers." in name]


def test_damaged_integers_are_refused_when_packed(quantised, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(packed_linear, "LARGE", 1000)
    for number, damage in enumerate((lambda a: a[:-1], lambda a: a[:, :-16])):
        folder = Path(shutil.copytree(quantised, tmp_path / str(number)))
        name = next(n for n in packed_names(folder) if "q_proj" in n)
        file = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
        arrays = load_file(file)
        arrays[name] = np.ascontiguousarray(damage(arrays[name]))
        file.unlink()  # it may be a second name of another's
        save_file(arrays, file, {"format": "pt"})
        with pytest.raises(CheckpointError, match="q_proj"):
            load_model(folder, "float32", packed=True)


def test_pieces_are_those_of_the_whole_model(small_checkpoint, quantised) -> None:
    for folder in (small_checkpoint, quantised):
        whole, pieces = load_model(folder, "float32"), Pieces(folder)
        for k in range(pieces.layers):
            layer = pieces.layer(k)
            for name, weight in whole.model.language_model.layers[k].named_parameters():
                assert torch.equal(layer.get_parameter(name), weight), name
        pixels = torch.randn(5, 3, 336, 336)
        with torch.no_grad(), pieces.pictures() as model:
            assert torch.allclose(model.encode_images(pixels), whole.encode_images(pixels), atol=1e-6)
            ids = [1, 5, 9]
            assert torch.equal(model.embed_prompt(ids), whole.embed_prompt(ids))
        assert all(p.is_meta for p in pieces.model.model.vision_tower.parameters())


def test_pieces_refuse_what_the_whole_model_refuses(small_checkpoint, tmp_path) -> None:
    folder = Path(shutil.copytree(small_checkpoint, tmp_path / "c"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json asks for"):
        Pieces(folder)
    config["text_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="lacks"):
        Pieces(folder)
    (folder / "config.json").write_text(json.dumps({**config, "text_config": {"hidden_size": "x"}}))
    with pytest.raises(CheckpointError, match="does not describe"):
        Pieces(folder)
