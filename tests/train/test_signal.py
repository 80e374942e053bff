from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pulse_edge.errors import UserError
from pulse_edge.train import signal
from pulse_edge.train.dataset import PageDataset, diagnoses
from pulse_edge.train.examples import fit_beat_basis, read_examples


def test_no_regression_judges_a_patient_that_it_learnt_from(
    labels_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, _ = read_examples(labels_csv, ("train",))
    examples = [*examples, *examples[:2]]  # two patients with a second record
    targets = np.stack([diagnoses(example.facts) for example in examples])
    judged: list[np.ndarray] = []

    def regress(learn: list[np.ndarray], told: np.ndarray, judge: list[np.ndarray]) -> np.ndarray:
        assert len(learn[0]) == len(told)
        for row in judge[1]:  # two records of a patient are the same here, so that both must be kept away
            assert not any(np.array_equal(row, other) for other in learn[1])
        judged.extend(judge[1])
        return np.full((len(judge[0]), told.shape[1]), 0.5)

    monkeypatch.setattr(signal, "_regress", regress)
    ticks: list[None] = []
    logits = signal.cross_fitted(examples, targets, seed=1, tick=lambda: ticks.append(None))
    assert np.array_equal(logits, np.zeros_like(targets))
    assert len(judged) == len(examples)
    assert len(ticks) == signal.STEPS


def test_the_regression_learns_what_the_signal_shows() -> None:
    rng = np.random.default_rng(0)
    signals = rng.normal(0, 0.1, (96, 12, 1000)).astype(np.float32)
    targets = rng.integers(0, 2, (96, 6)).astype(np.float32)
    spikes = np.zeros(1000, np.float32)
    spikes[::80] = 2.0
    signals[targets[:, 0] == 1, 3] += spikes
    targets[:8, 1] = np.nan
    view = signal.random_convolutions(signals, seed=0)
    believed = signal._regress([view[:64]] * 2, targets[:64], [view[64:]] * 2)
    told = targets[64:, 0] == 1
    assert believed[told, 0].min() > believed[~told, 0].max()
    assert np.isfinite(believed).all()


def test_beliefs_soften_the_labels_of_their_own_record(labels_csv: Path, small_checkpoint: Path) -> None:
    from pulse_edge.model.tokenizer import Tokenizer

    examples, _ = read_examples(labels_csv, ("train",))
    tokenizer = Tokenizer.from_folder(small_checkpoint)
    basis = fit_beat_basis(examples)
    beliefs = np.random.default_rng(3).normal(0, 2, (len(examples), 28)).astype(np.float32)
    hard = PageDataset(examples, tokenizer, basis, 49, 6, seed=4)
    soft = PageDataset(examples, tokenizer, basis, 49, 6, seed=4, beliefs=beliefs)
    seen = []
    for k in range(6):
        told = hard[k]["diagnoses"]
        row = next(
            i
            for i, believed in enumerate(beliefs)
            if np.allclose(soft[k]["diagnoses"], 0.3 * told + 0.7 / (1 + np.exp(-believed)), atol=1e-6)
        )
        assert np.array_equal(told, diagnoses(examples[row].facts))
        seen.append(row)
    assert sorted(seen) == list(range(6))


def test_too_few_patients_are_refused(labels_csv: Path) -> None:
    examples, _ = read_examples(labels_csv, ("train",))
    with pytest.raises(UserError, match="5 patients"):
        signal.cross_fitted(examples[:2], np.zeros((2, 28), np.float32), seed=0)


def test_calibration_undoes_what_ridge_shrinks() -> None:
    rng = np.random.default_rng(0)
    truth = np.stack([rng.normal(0, 2, 4000), np.full(4000, 1.0)], 1)
    targets = (rng.random(truth.shape) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    targets[::7, 0] = np.nan
    targets[:, 1] = 0
    shrunk = (0.3 * truth - 1.0).astype(np.float32)
    again = signal.calibrated(shrunk, targets, shrunk[:50])
    assert np.abs(again[:, 0] - truth[:50, 0]).max() < 0.6
    assert np.array_equal(again[:, 1], shrunk[:50, 1])  # nothing to learn from
