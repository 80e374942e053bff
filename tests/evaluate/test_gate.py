"""The accuracy gate, against figures computed by hand and another way."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pulse_edge.errors import BudgetError
from pulse_edge.evaluate.gate import Budget, compare, judge
from pulse_edge.evaluate.score import Scored


def scored(score: np.ndarray, truth: np.ndarray, patients: list[str] | None = None) -> Scored:
    names = [f"L{k}" for k in range(score.shape[1])]
    records = [str(k) for k in range(len(score))]
    return Scored(names, records, patients or records, score, truth, {}, 0.0)


@pytest.fixture(scope="module")
def pair() -> tuple[Scored, Scored]:
    rng = np.random.default_rng(0)
    truth = rng.random((200, 3)) < 0.3
    before = np.clip(truth * 0.25 + rng.random((200, 3)) * 0.7, 0, 1)
    after = np.clip(before + rng.normal(0, 0.15, before.shape), 0, 1)
    patients = [str(k // 2) for k in range(200)]
    return scored(before, truth, patients), scored(after, truth, patients)


def test_loss_and_flips(pair) -> None:
    before, after = pair
    found = compare(before, after)
    macro = [np.mean([roc_auc_score(s.truth[:, k], s.score[:, k]) for k in range(3)]) for s in pair]
    assert found["loss"] == pytest.approx(macro[0] - macro[1])
    assert found["patients"] == 100
    low, high = found["loss_interval"]
    assert low < found["loss"] < high
    flipped = (before.score >= 0.5) != (after.score >= 0.5)
    assert found["flip_share"] == pytest.approx(flipped.mean())
    assert sum(sum(side.values()) for side in found["flips"].values()) == flipped.sum()


def test_the_interval_is_of_pairs(pair) -> None:
    """A model compared with itself has lost nothing, whatever its own interval."""
    found = compare(pair[0], pair[0])
    assert found["loss_interval"] == [0.0, 0.0]
    assert found["flip_share"] == 0


def test_other_records_are_no_pair(pair) -> None:
    before, after = pair
    with pytest.raises(ValueError, match="same records"):
        compare(before, scored(after.score[:-1], after.truth[:-1]))


def test_the_budget(pair) -> None:
    found = compare(*pair)
    assert judge(found, Budget(1.0, 1.0), accept_loss=False)["passed"]
    with pytest.raises(BudgetError, match="macro AUROC fell") as caught:
        judge(found, Budget(0.0, 1.0), accept_loss=False)
    assert caught.value.exit_code == 3
    with pytest.raises(BudgetError, match="labels flipped"):
        judge(found, Budget(1.0, 0.0), accept_loss=False)
    kept = judge(found, Budget(0.0, 0.0), accept_loss=True)
    assert not kept["passed"]
    assert len(kept["accepted"]) == 2


def test_records_that_cannot_tell_do_not_pass() -> None:
    one_sided = scored(np.full((3, 1), 0.2), np.zeros((3, 1), bool))
    with pytest.raises(BudgetError, match="do not tell"):
        judge(compare(one_sided, one_sided), Budget(1.0, 1.0), accept_loss=False)
