from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pulse_edge.errors import UserError
from pulse_edge.model.checkpoint import read_card
from pulse_edge.train import run
from pulse_edge.train.build import build_model, grow
from pulse_edge.train.recipe import ModelShape, read_recipe


@pytest.fixture
def shape(tiny_recipe: Path) -> ModelShape:
    return read_recipe(tiny_recipe).model


def changed(shape: ModelShape, **vision: object) -> ModelShape:
    return replace(shape, vision={**shape.vision, **vision})


def test_a_grown_model_answers_as_the_earlier_one(shape: ModelShape) -> None:
    torch.manual_seed(0)
    earlier = build_model(shape, 700)
    grown = build_model(changed(shape, depths=[0, 1, 1, 2], context_layers=3), 700)
    earlier.train()
    with torch.no_grad():
        earlier.encode_images(torch.randn(5, 3, 336, 336))  # running statistics of its own
    grow(grown, earlier)
    tiles = torch.randn(5, 3, 336, 336)
    with torch.no_grad():
        one, two = earlier.eval().encode_images(tiles), grown.eval().encode_images(tiles)
    assert (one - two).abs().max() < 1e-4 * one.std()
    new = dict(grown.named_parameters())
    grown.encode_images(tiles).sum().backward()
    assert new["model.vision_tower.context.2.mix.weight"].grad.abs().max() > 0  # it can learn away from it


@pytest.mark.parametrize(
    "vision", [{"widths": [6, 6, 12, 36]}, {"depths": [0, 0, 0, 0]}, {"context_layers": 0}]
)
def test_a_model_of_another_shape_cannot_be_grown(shape: ModelShape, vision: dict[str, object]) -> None:
    with pytest.raises(UserError, match="cannot start from"):
        grow(build_model(changed(shape, **vision), 700), build_model(shape, 700))


def test_training_from_an_earlier_checkpoint_names_it(
    trained: Path, tiny_recipe: Path, labels_csv: Path, tmp_path: Path
) -> None:
    run(tiny_recipe, labels_csv, tmp_path / "second", pages=3, workers=0, init=str(trained))
    parent = read_card(tmp_path / "second")["parent"]
    assert parent["name"] == "tiny"
    assert len(parent["sha256"]) == 64
