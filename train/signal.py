"""A teacher that reads the signal: what a network on the samples believes, for pages to learn from.

A 0/1 label says little about a borderline ECG, and a small tower that meets 1,600 labels twenty
times learns them by heart. A one-dimensional residual network (after Ribeiro et al., Nature
Communications 2020) on the samples themselves reads far better than a tower of the same size reads
pages. Its probabilities soften the labels (distillation, Hinton et al., 2015). Every record is
judged by a network that never saw its patient (cross-fitting), since one that did would only give
the label back.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly
from torch import nn

from pulse_edge.ecg.instruct import SUPERCLASS_PHRASES
from pulse_edge.errors import UserError
from pulse_edge.train.examples import Example

FS: Final = 100  # Hz; half of it holds all that a page of 57 pixels a second can show
SAMPLES: Final = 1000
FOLDS: Final = 5
EPOCHS: Final = 40
BATCH: Final = 32
PEAK_RATE: Final = 4e-3
FINDING_WEIGHT: Final = 0.5


class SignalNet(nn.Module):
    """Leads float32 [B, 12, 1000] in mV at 100 Hz -> logits [B, targets]."""

    def __init__(self, targets: int, widths: tuple[int, ...] = (48, 64, 96, 128, 160)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(12, widths[0], 9, 2, 4, bias=False), nn.BatchNorm1d(widths[0]), nn.ReLU()
        )
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in pairwise(widths)))
        self.head = nn.Sequential(nn.Dropout(0.4), nn.Linear(2 * widths[-1], targets))

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        """Return the logits; mean and maximum over time make the answer independent of where a beat is."""
        features = self.blocks(self.stem(signal))
        logits: torch.Tensor = self.head(torch.cat([features.mean(-1), features.amax(-1)], 1))
        return logits


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(width_in, width, 7, 2, 3, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Dropout(0.2), nn.Conv1d(width, width, 7, 1, 3, bias=False), nn.BatchNorm1d(width),
        )  # fmt: skip
        self.skip = nn.Sequential(nn.AvgPool1d(2, ceil_mode=True), nn.Conv1d(width_in, width, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def cross_fitted(
    examples: list[Example],
    targets: NDArray[np.float32],
    seed: int,
    epochs: int = EPOCHS,
    tick: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Return, for every example, the logits of a network that was trained on other patients.

    Args:
        examples: of the training patients.
        targets: float32 [n, targets], 0 or 1, NaN where unknown.
        seed: of folds, weights and variation.
        epochs: over the other folds' records.
        tick: called after each epoch of each fold, for a progress bar.

    Returns:
        float32 [n, targets].

    Raises:
        UserError: there are too few patients to keep any apart.
    """
    if len({example.patient for example in examples}) < FOLDS:
        raise UserError(
            f"Training needs records of {FOLDS} patients or more, so that the signal teacher never judges "
            "a patient that it learnt from. Name a larger labels.csv with --data."
        )
    signals = np.stack([_samples(example) for example in examples])
    patients = sorted({example.patient for example in examples})
    order = np.random.default_rng(seed).permutation(len(patients)) % FOLDS
    of_patient = dict(zip(patients, order, strict=True))
    fold = np.array([of_patient[example.patient] for example in examples])
    logits = np.empty_like(targets)
    for k in range(FOLDS):
        net = _fit(signals[fold != k], targets[fold != k], seed + k, epochs, tick)
        with torch.no_grad():
            logits[fold == k] = net(torch.from_numpy(signals[fold == k])).numpy()
    return logits


def _fit(
    signals: NDArray[np.float32],
    targets: NDArray[np.float32],
    seed: int,
    epochs: int,
    tick: Callable[[], None],
) -> SignalNet:
    """Train one network, with mixtures of two records (mixup, Zhang et al., 2018)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = SignalNet(targets.shape[1])
    x, y = torch.from_numpy(signals), torch.from_numpy(targets)
    batch = min(BATCH, len(x))
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for at in range(0, len(x) - batch + 1, batch):
            one = order[at : at + batch]
            other = one[torch.randperm(batch)]
            share = float(rng.beta(0.3, 0.3))
            logits = net(_vary(share * x[one] + (1 - share) * x[other]))
            loss = share * _loss(logits, y[one]) + (1 - share) * _loss(logits, y[other])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        tick()
    return net.eval()


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    weight = torch.isfinite(targets).float()
    weight[:, len(SUPERCLASS_PHRASES) :] *= FINDING_WEIGHT
    each = nn.functional.binary_cross_entropy_with_logits(logits, targets.nan_to_num(), reduction="none")
    return (each * weight).sum() / weight.sum().clamp(min=1e-6)


def _samples(example: Example) -> NDArray[np.float32]:
    """Ten seconds at 100 Hz, float32 [12, 1000]; a shorter record ends in zeros."""
    record = example.record
    signal = resample_poly(np.nan_to_num(record.signal), FS, round(record.fs), axis=1)[:, :SAMPLES]
    return np.pad(signal, ((0, 0), (0, SAMPLES - signal.shape[1]))).astype(np.float32)


def _vary(x: torch.Tensor) -> torch.Tensor:
    """Another gain, tempo (±12 %), beginning, wander and noise for every record of a batch [B, 12, L]."""
    n, leads, length = x.shape
    x = x * (torch.rand(n, 1, 1) * 0.3 + 0.85) * (torch.rand(n, leads, 1) * 0.1 + 0.95)
    at = torch.linspace(-1, 1, length) * (torch.rand(n, 1) * 0.23 + 0.89) + (torch.rand(n, 1) - 0.5) * 0.4
    grid = torch.stack([at, torch.zeros_like(at)], -1).unsqueeze(1)
    x = nn.functional.grid_sample(x.unsqueeze(2), grid, padding_mode="reflection", align_corners=True)
    hertz = torch.rand(n, 1, 1) * 0.3 + 0.1
    phase = torch.arange(length) / FS * 2 * torch.pi * hertz + torch.rand(n, leads, 1) * 2 * torch.pi
    wander = torch.rand(n, leads, 1) * 0.1 * torch.sin(phase)
    noise = torch.randn(n, leads, length) * torch.rand(n, 1, 1) * 0.02
    varied: torch.Tensor = x.squeeze(2) + wander + noise
    return varied
