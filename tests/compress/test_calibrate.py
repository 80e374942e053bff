"""Calibration sets: the same by seed, mixed by diagnosis, of training patients, and never text unawares."""

from __future__ import annotations

import numpy as np
import pytest

from pulse_edge.compress import calibrate
from pulse_edge.compress.calibrate import build, read_recipe
from pulse_edge.ecg.split import split
from pulse_edge.errors import UnknownNameError, UserError
from pulse_edge.samples import SAMPLES, samples

TABLE = SAMPLES / "samples.csv"


def test_the_same_seed_gives_the_same_set_and_another_another(tmp_path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"records: {TABLE}\nside: test\n")
    sets = [build(read_recipe(own, 2, seed)) for seed in (1, 1, 2)]
    assert sets[0][1] == sets[1][1]
    assert np.array_equal(sets[0][0][0].page, sets[1][0][0].page)
    assert sets[0][1]["sha256"] != sets[2][1]["sha256"]


def test_only_training_patients_and_every_diagnosis(shared) -> None:
    table = shared / "ecg" / "labels.csv"
    prompts, facts = build(read_recipe(table, 24, 0))
    assert len(prompts) == 24
    assert len(facts["labels"]) > 15  # every combination of diagnoses in turn, the rare ones too
    assert max(facts["labels"].values()) <= 2
    assert all(prompt.answer and prompt.page is not None for prompt in prompts)


def test_a_side_is_kept_to() -> None:
    assert {split(row["patient_id"]) for row in samples()} == {"test"}  # the shipped ones are for tests
    with pytest.raises(UserError, match="No usable record of the side train"):
        build(read_recipe(TABLE, 2))


def test_a_set_of_the_users_own(tmp_path, monkeypatch) -> None:
    own = tmp_path / "clinic.yaml"
    own.write_text(f"name: our-clinic\nrecords: {TABLE}\nside: test\nsize: 1\nphotos: 0\nseed: 4\n")
    recipe = read_recipe(own)
    assert (recipe.name, recipe.size, recipe.photos, recipe.seed) == ("our-clinic", 1, 0, 4)
    monkeypatch.setattr(calibrate, "REGISTRY", tmp_path)
    assert read_recipe("clinic") == recipe
    assert read_recipe("clinic", size=3).size == 3
    with pytest.raises(UnknownNameError, match="'clinic'"):
        read_recipe("clinik")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("recods: x.csv", "'records'"),
        ("records: 3", "records cannot be 3"),
        ("size: true\nrecords: x.csv", "size cannot be True"),
        ("records: x.csv\nside: tset", "'test'"),
        ("records: x.csv\nphotos: 2", "share"),
        ("size: 3", "records and text"),
        ("- 1", "no keys"),
        ("a: [", "YAML"),
    ],
)
def test_a_file_that_says_something_impossible(tmp_path, text, sentence) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_recipe(own)


def test_text_alone_is_refused_unless_forced(tmp_path) -> None:
    (tmp_path / "own.yaml").write_text("text: prompts.txt\nsize: 2\n")
    (tmp_path / "prompts.txt").write_text("One prompt\n\nAnother\nA third\n")
    recipe = read_recipe(tmp_path / "own.yaml")
    with pytest.raises(UserError, match="--force-text"):
        build(recipe)
    prompts, facts = build(recipe, force_text=True)
    assert [prompt.question for prompt in prompts] == ["One prompt", "Another"]
    assert facts["labels"] == {"text": 2}
