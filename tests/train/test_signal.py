from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pulse_edge.errors import UserError
from pulse_edge.train import signal
from pulse_edge.train.dataset import PageDataset, diagnoses
from pulse_edge.train.examples import fit_beat_basis, read_examples


def test_no_network_judges_a_patient_that_it_learnt_from(
    labels_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, _ = read_examples(labels_csv, ("train",))
    examples = [*examples, *examples[:2]]  # two patients with a second record
    targets = np.stack([diagnoses(example.facts) for example in examples])
    samples = np.stack([signal._samples(example) for example in examples])
    learnt: list[np.ndarray] = []

    class Judge(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for one in x.numpy():
                assert not any(np.array_equal(one, other) for other in learnt[-1])
            return torch.zeros(len(x), targets.shape[1])

    def fit(signals: np.ndarray, *_: object) -> Judge:
        learnt.append(signals)
        return Judge()

    monkeypatch.setattr(signal, "_fit", fit)
    logits = signal.cross_fitted(examples, targets, seed=1)
    assert logits.shape == targets.shape
    assert sum(len(samples) - len(signals) for signals in learnt) == len(examples)


def test_the_network_learns_what_the_signal_shows() -> None:
    rng = np.random.default_rng(0)
    signals = rng.normal(0, 0.1, (96, 12, 1000)).astype(np.float32)
    targets = rng.integers(0, 2, (96, 6)).astype(np.float32)
    spikes = np.zeros(1000, np.float32)
    spikes[::80] = 2.0
    signals[targets[:, 0] == 1, 3] += spikes
    net = signal._fit(signals[:64], targets[:64], 0, 40, lambda: None)
    with torch.no_grad():
        logits = net(torch.from_numpy(signals[64:])).numpy()[:, 0]
    told = targets[64:, 0] == 1
    assert logits[told].mean() > logits[~told].mean() + 1


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
            if np.allclose(soft[k]["diagnoses"], 0.5 * told + 0.5 / (1 + np.exp(-believed)), atol=1e-6)
        )
        assert np.array_equal(told, diagnoses(examples[row].facts))
        seen.append(row)
    assert sorted(seen) == list(range(6))


def test_too_few_patients_are_refused(labels_csv: Path) -> None:
    examples, _ = read_examples(labels_csv, ("train",))
    with pytest.raises(UserError, match="5 patients"):
        signal.cross_fitted(examples[:2], np.zeros((2, 28), np.float32), seed=0)
