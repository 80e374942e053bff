from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from pulse_edge.errors import UnknownNameError, UserError
from pulse_edge.train.recipe import read_recipe


def test_the_shipped_recipe_reads() -> None:
    recipe = read_recipe("pulse-nano")
    assert recipe.name == "pulse-nano"
    assert set(recipe.train) == {"see", "speak"}


def test_a_recipe_of_tuning_has_the_shape_that_it_tunes() -> None:
    tune, whole = read_recipe("pulse-nano-tune"), read_recipe("pulse-nano")
    assert list(tune.train) == ["tune"]
    assert (tune.name, tune.model, tune.file) == (whole.name, whole.model, "pulse-nano-tune.yaml")


def test_stages_come_in_their_order(tmp_path: Path, tiny_recipe: Path) -> None:
    raw = yaml.safe_load(tiny_recipe.read_text())
    raw["train"] = {"tune": raw["train"]["see"], "speak": raw["train"]["speak"], "see": raw["train"]["see"]}
    path = tmp_path / "turned.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    assert list(read_recipe(path).train) == ["see", "speak", "tune"]


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'pulse-nano'"):
        read_recipe("pulse-nan")


@pytest.mark.parametrize(
    ("where", "wrong", "nearest"),
    [
        ((), "nam", "name"),
        (("model",), "vocab_sice", "vocab_size"),
        (("train", "see"), "learning_rat", "learning_rate"),
    ],
)
def test_an_unknown_key_names_the_nearest(
    tmp_path: Path, tiny_recipe: Path, where: tuple[str, ...], wrong: str, nearest: str
) -> None:
    raw = yaml.safe_load(tiny_recipe.read_text())
    inner = raw
    for key in where:
        inner = inner[key]
    inner[wrong] = 1
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(UnknownNameError, match=f"Did you mean '{nearest}'"):
        read_recipe(path)


def test_missing_parts_are_named(tmp_path: Path, tiny_recipe: Path) -> None:
    whole = yaml.safe_load(tiny_recipe.read_text())
    path = tmp_path / "wrong.yaml"
    for drop, said in (
        (("seed",), "seed"),
        (("train", "speak"), "see and speak"),
        (("train", "see", "batch"), "batch"),
    ):
        raw = copy.deepcopy(whole)
        inner = raw
        for key in drop[:-1]:
            inner = inner[key]
        del inner[drop[-1]]
        path.write_text(yaml.safe_dump(raw))
        with pytest.raises(UserError, match=said):
            read_recipe(path)
    for content in ("[1, 2]", "a: [", ""):
        path.write_text(content)
        with pytest.raises(UserError):
            read_recipe(path)
    with pytest.raises(UserError):
        read_recipe(tmp_path / "absent.yaml")
