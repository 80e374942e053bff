"""The parity gate against sessions whose differences are made up here, and so known exactly."""

from __future__ import annotations

import numpy as np
import pytest

from pulse_edge.errors import GateError
from pulse_edge.evaluate.parity import LIMITS, TOKENS, compare, compare_tiles, probe, probe_problems
from pulse_edge.model.preprocess import tiles

PAGES = [np.zeros((32, 32, 3), np.uint8)] * 2
BASE = np.array([0.0, 5.0, 1.0, 4.9], np.float32)  # tokens 1 and 3 are nearly as likely


class Made:
    """A session whose logits and probabilities are given; also its own backend."""

    def __init__(self, prompt=0.0, steps=(), probabilities=(0.2, 0.8)) -> None:
        self.prompt, self.steps, self.probabilities = prompt, dict(steps), probabilities
        self.backend, self.taken = self, []

    def logits(self, image, question):
        self.at = 0
        return BASE + np.float32(self.prompt)

    def step(self, token):
        self.at += 1
        self.taken.append(token)
        return BASE + np.asarray(self.steps.get(self.at, 0.0), np.float32)

    def label(self, image):
        return dict(zip(("NORM", "MI"), self.probabilities, strict=True))


def test_the_same_answers_differ_in_nothing() -> None:
    result = compare(Made(), Made(), PAGES, "fp32")
    assert result["greedy_agreement"] == 1.0
    assert (result["label_flips"], result["labels"], result["pages"]) == (0, 4, 2)
    for key in ("logits_max_abs", "logits_mean_abs", "decode_logits_max_abs", "probability_max_abs"):
        assert result[key] == 0.0


def test_every_difference_is_measured_where_it_is() -> None:
    shift = np.array([0.0, -0.3, 0.0, 0.3], np.float32)  # token 3 overtakes token 1
    candidate = Made(prompt=0.25, steps={5: shift, 9: shift}, probabilities=(0.25, 0.7))
    result = compare(Made(), candidate, PAGES, "int4")
    assert result["logits_max_abs"] == result["logits_mean_abs"] == 0.25
    assert result["decode_logits_max_abs"] == pytest.approx(0.3, abs=1e-6)
    assert result["greedy_agreement"] == pytest.approx(1 - 2 / TOKENS)
    assert result["probability_max_abs"] == pytest.approx(0.1)
    assert result["label_flips"] == 0
    assert set(candidate.taken) == {1}  # it reads the reference's tokens, also where it prefers another


def test_a_label_that_changes_sides_is_counted() -> None:
    result = compare(Made(probabilities=(0.49, 0.5)), Made(probabilities=(0.5, 0.5)), PAGES, "int8")
    assert result["label_flips"] == 2


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("where", ["prompt", "steps", "probability"])
def test_each_limit_holds_just_inside_and_fails_just_outside(where, precision) -> None:
    def candidate(share: float) -> Made:
        limits = LIMITS[precision]
        if where == "prompt":
            return Made(prompt=share * limits["logits"])
        if where == "steps":
            return Made(steps={TOKENS: share * limits["logits"]})
        return Made(probabilities=(0.2, 0.8 - share * limits["probability"]))

    compare(Made(), candidate(0.9), PAGES, precision)
    with pytest.raises(GateError, match=rf"{precision} bundle .*not kept.*higher --precision"):
        compare(Made(), candidate(1.1), PAGES, precision)


@pytest.mark.parametrize(
    "candidate",
    [
        Made(prompt=np.nan),
        Made(steps={1: np.nan}),
        Made(steps={TOKENS: [np.nan, 0, 0, 0]}),
        Made(steps={7: np.inf}),
        Made(probabilities=(np.nan, 0.8)),
        Made(probabilities=(0.2, np.nan)),
    ],
    ids=["prompt", "first step", "one logit of the last step", "infinite", "first label", "last label"],
)
def test_what_is_no_number_never_passes(candidate) -> None:
    """An overflow in half precision comes as NaN, which no comparison finds too large."""
    with pytest.raises(GateError):
        compare(Made(), candidate, PAGES, "int4")


PICTURES = [np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)]


def shifted(share: float, levels: int):
    """PULSE's own cut, with so many values of it changed by so many levels."""

    def cut(picture):
        made = tiles(picture).astype(int)
        flat = made.reshape(-1)
        count = round(share * flat.size)
        flat[:count] = np.where(flat[:count] > 128, flat[:count] - levels, flat[:count] + levels)
        return made.astype(np.uint8)

    return cut


def test_tiles_are_compared_in_grey_levels() -> None:
    assert compare_tiles(tiles, PICTURES) == {"max_levels": 0, "changed": 0.0}
    result = compare_tiles(shifted(5e-4, 2), PICTURES)
    assert result["max_levels"] == 2
    assert result["changed"] == pytest.approx(5e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("cut", "sentence"),
    [
        (shifted(1e-5, 3), "up to 3 grey levels"),
        (shifted(2e-3, 1), "in 0.20% of the values"),
        (lambda picture: tiles(picture)[:4], "into 4 tiles and PULSE into 5"),
    ],
)
def test_other_tiles_are_refused(cut, sentence) -> None:
    with pytest.raises(GateError, match=sentence):
        compare_tiles(cut, PICTURES)


def test_a_probe_is_repeated_and_its_differences_are_named() -> None:
    recorded = probe(Made(), PAGES[0])
    assert recorded == {"tokens": [1] * 8, "labels": {"NORM": 0.2, "MI": 0.8}}
    assert probe_problems(recorded, Made(probabilities=(0.205, 0.8)), PAGES[0]) == []
    other = Made(prompt=np.array([9, 0, 0, 0], np.float32), probabilities=(0.22, np.nan))
    problems = probe_problems(recorded, other, PAGES[0])
    assert [problem.split()[:3] for problem in problems] == [
        ["The", "bundle's", "first"], ["The", "label", "NORM"], ["The", "label", "MI"],
    ]  # fmt: skip
