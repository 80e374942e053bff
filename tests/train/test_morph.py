from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pulse_edge.ecg.heart import Heart
from pulse_edge.ecg.measure import measure
from pulse_edge.ecg.record import Record
from pulse_edge.ecg.simulate import simulate
from pulse_edge.errors import UserError
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.train import run
from pulse_edge.train.dataset import PageDataset
from pulse_edge.train.examples import fit_beat_basis, read_examples
from pulse_edge.train.morph import Morphs, bend
from pulse_edge.train.recipe import read_recipe


@pytest.fixture(scope="module")
def hearts() -> list[Record]:
    """A slow and a fast heart; the QRS axes point apart."""
    slow = simulate(Heart(rate_bpm=50.0, axis_deg=60.0), seed=1)
    fast = simulate(Heart(rate_bpm=110.0, axis_deg=-40.0), seed=2)
    return [slow.record, fast.record]


@given(
    st.lists(st.floats(0.3, 2.0), min_size=2, max_size=12),
    st.lists(st.floats(0.3, 2.0), min_size=2, max_size=12),
    st.floats(0.0, 1.0),
)
def test_complexes_meet_complexes_and_keep_their_shape(
    first: list[float], second: list[float], start: float
) -> None:
    one = start + np.concatenate([[0.0], np.cumsum(first)])
    two = 0.4 + np.concatenate([[0.0], np.cumsum(second)])
    at = bend(one, one, two)
    assert all(np.abs(two - instant).min() < 1e-9 for instant in at)
    # A QRS complex, here 40 ms to either side of R, runs as fast as in the record that it is taken from.
    for side in (-0.04, 0.04):
        inner = one[1:-1] + side
        assert bend(inner, one, two) - bend(one[1:-1], one, two) == pytest.approx(side, abs=1e-9) or (
            side < 0  # a complex that ends the last interval of the second continues as its first one
            and np.allclose(np.abs(bend(inner, one, two)[:, None] - two - side).min(1), 0, atol=1e-9)
        )


def test_a_morph_has_the_rhythm_of_the_first_and_beats_between_the_two(hearts: list[Record]) -> None:
    morphs = Morphs(hearts, seed=3)
    for k in range(6):
        mixed, record = morphs.mixture(k), morphs.record(k)
        one, two = (measure(hearts[i]) for i in (mixed.first, mixed.second))
        seen = measure(record)
        assert seen.rate_bpm == pytest.approx(one.rate_bpm, rel=0.02)
        around = slice(11, 18)  # 60 ms to either side of R, at 50 Hz: the T wave of a slow heart is elsewhere
        wanted = (1 - mixed.share) * one.beats + mixed.share * two.beats
        level = [(beat - beat[:, 8:9])[:, around] for beat in (seen.beats, wanted)]
        near = np.abs(level[0] - level[1]).mean()
        apart = min(np.abs((b.beats - b.beats[:, 8:9])[:, around] - level[0]).mean() for b in (one, two))
        assert near < 0.5 * apart
        # Einthoven's law holds for a mixture as it does for both.
        assert np.abs(record.signal[0] + record.signal[2] - record.signal[1]).mean() < 0.03


def test_a_morph_depends_on_seed_and_number_only(hearts: list[Record]) -> None:
    one, two = Morphs(hearts, seed=3), Morphs(hearts, seed=3)
    two.record(0)
    assert np.array_equal(one.record(5).signal, two.record(5).signal)
    assert not np.array_equal(one.record(5).signal, Morphs(hearts, seed=4).record(5).signal)
    flat = Record(np.zeros((12, 5000), np.float32), 500.0)
    with pytest.raises(UserError, match=r"two records with 3 QRS complexes; 1 of 2 have.*--data"):
        Morphs([hearts[0], flat], seed=0)


def test_pages_of_morphs_come_between_those_of_records(labels_csv: Path, tokenizer: Tokenizer) -> None:
    examples, _ = read_examples(labels_csv, ("train",))
    basis = fit_beat_basis(examples)
    morphs = Morphs([example.record for example in examples], seed=1)
    logits = np.random.default_rng(0).normal(size=(6, 28)).astype(np.float32)
    data = PageDataset(
        examples, tokenizer, basis, 49, 12, 1, dense=False, morphs=(morphs, logits), morphed=0.5
    )
    seen: list[str] = []
    whole = data.page

    def page(example, rng, findings=None):  # type: ignore[no-untyped-def]
        seen.append(example.record.name)
        return whole(example, rng, findings)

    data.page = page  # type: ignore[method-assign]
    items = [data[k] for k in range(12)]
    assert [name for name in seen if name.startswith("morph")] == [f"morph {k}" for k in range(6)]
    assert sorted(name for name in seen if not name.startswith("morph")) == sorted(
        example.record.name for example in examples
    )
    told = [item for item, name in zip(items, seen, strict=True) if name.startswith("morph")]
    for item, row in zip(told, logits, strict=True):
        assert item["diagnoses"] == pytest.approx(1 / (1 + np.exp(-row)), abs=1e-6)
        assert (item["closed"] >= 0).all()
        assert len(np.unique(item["found"][:, 1])) == len(item["found"]) == 3
        answers = tokenizer.decode(item["ids"][item["labels"] > 0], skip_special=True)
        assert "Rhythm" not in answers
        assert "Conclusion" not in answers


def test_a_recipe_with_morphs_trains_and_one_that_would_learn_their_answers_is_refused(
    trained: Path, labels_csv: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    raw = yaml.safe_load(tiny_recipe.read_text())
    raw["train"]["speak"]["morphs"] = 0.5
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(raw))
    with pytest.raises(UserError, match=r"speak learns answers, and morphs have none"):
        read_recipe(recipe)
    raw["train"] = {"tune": raw["train"]["see"] | {"morphs": 0.5}}
    recipe.write_text(yaml.safe_dump(raw))
    result = run(recipe, labels_csv, tmp_path / "tuned", workers=0, init=str(trained))
    assert all(np.isfinite(row["taught_loss"]) for row in result["history"])
    kept = np.load(tmp_path / "tuned.training" / "morphs.npy")
    assert kept.shape == (raw["train"]["tune"]["pages"] // 2, 28)
