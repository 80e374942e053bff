"""The figures against scikit-learn, which the published evaluator calls."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, hamming_loss, roc_auc_score
from sklearn.preprocessing import MultiLabelBinarizer

from pulse_edge.errors import UserError
from pulse_edge.evaluate.ecgbench.metrics import balanced_accuracy, published_scores, strict_scores

NAMES = ["NORM", "MI", "STTC", "CD"]
row = st.lists(st.sampled_from([*NAMES, "other"]), unique=True, max_size=4)
rows = st.lists(
    st.tuples(row, st.lists(st.sampled_from(NAMES), unique=True, max_size=3)), min_size=2, max_size=25
)


def by_scikit(said, true) -> tuple[float, float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        binarizer = MultiLabelBinarizer()
        t = binarizer.fit_transform(true)
        s = binarizer.transform(said)
        f1 = f1_score(t, s, average=None)[: len(binarizer.classes_)]
        auc = []
        for k in range(t.shape[1]):
            constant = len(set(t[:, k])) == 1
            auc.append(np.nan if constant else roc_auc_score(t[:, k], s[:, k]))
        return float(np.mean(f1)), float(np.mean(auc)), hamming_loss(t, s)


@settings(max_examples=80, deadline=None)
@given(rows)
def test_published_figures_are_scikit_learns(pairs) -> None:
    said, true = [a for a, _ in pairs], [b for _, b in pairs]
    if not any(true):
        with pytest.raises(UserError, match="No reference holds a label"):
            published_scores(said, true)
        return
    ours = published_scores(said, true)
    f1, auc, hl = by_scikit(said, true)
    assert ours["f1"] == pytest.approx(f1, abs=1e-12)
    assert ours["hl"] == pytest.approx(hl, abs=1e-12)
    assert ours["auc"] == (None if np.isnan(auc) else pytest.approx(auc, abs=1e-12))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_balanced_accuracy_is_the_area_of_a_yes_or_no(pairs) -> None:
    true, said = (np.array([p[k] for p in pairs]) for k in (0, 1))
    expected = None if len(set(true)) == 1 else pytest.approx(roc_auc_score(true, said), abs=1e-12)
    assert balanced_accuracy(true, said) == expected


def test_one_class_alone_is_taken_for_a_binary_task() -> None:
    """Where the only class of the truth is absent somewhere, scikit-learn's first F1 is that of absence."""
    said, true = [["A"], ["A"], ["A"], []], [["A"], ["A"], [], []]
    assert published_scores(said, true)["f1"] == pytest.approx(by_scikit(said, true)[0])
    assert published_scores(said, true)["f1"] == pytest.approx(2 / 3)
    assert strict_scores(said, true, ["A"])["f1"] == pytest.approx(4 / 5)


def test_strict_counts_a_label_that_no_reference_holds() -> None:
    """Published: classes of the truth alone, so that a label said in vain is free."""
    said, true = [["A", "C"], ["B", "C"], ["A"]], [["A"], ["B"], ["A"]]
    loose, strict = published_scores(said, true), strict_scores(said, true, ["A", "B", "C"])
    assert (loose["f1"], loose["auc"], loose["hl"], loose["classes"]) == (1.0, 1.0, 0.0, ["A", "B"])
    assert strict["hl"] == pytest.approx(2 / 9)
    assert strict["undefined"] == ["C"]
    assert strict["per_class"]["C"] == {"f1": None, "balanced_accuracy": None}


def test_strict_is_not_undone_by_one_class_without_contrast() -> None:
    said, true = [["A"], ["A", "B"], ["A"]], [["A"], ["A", "B"], ["A"]]
    assert published_scores(said, true)["auc"] is None
    strict = strict_scores(said, true, ["A", "B"])
    assert (strict["balanced_accuracy"], strict["undefined"], strict["f1"]) == (1.0, ["A"], 1.0)
    nothing = strict_scores([[]], [[]], ["A"])
    assert (nothing["f1"], nothing["balanced_accuracy"], nothing["hl"]) == (None, None, 0.0)
