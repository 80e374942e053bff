"""A teacher that reads the signal: what the samples themselves tell, for pages to learn from.

A 0/1 label says little about a borderline ECG, and a small tower that meets 1,600 labels twenty times
learns them by heart. The teacher's probabilities soften them (distillation, Hinton et al., 2015). It is
kernel ridge regression, a closed form, on two views of a record: the responses of random convolutions
(MiniRocket, Dempster et al., KDD 2021, with the maximum and the deviation beside the share of positive
values) and the median beat of every lead with the rhythm. Three regressions, one on each view and one on
both, are averaged. Every record is judged by regressions that never saw its patient (cross-fitting),
since one that did would only give the label back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly
from sklearn.linear_model import LogisticRegression

from pulse_edge.ecg.measure import Measurements, measure
from pulse_edge.ecg.record import Record
from pulse_edge.errors import UserError
from pulse_edge.train.examples import Example

FS: Final = 100  # Hz; half of it holds all that a page of 57 pixels a second can show
SAMPLES: Final = 1000
FOLDS: Final = 5
DILATIONS: Final = (1, 2, 4, 7, 12, 20, 32, 50)
STEPS: Final = len(DILATIONS) + FOLDS  # of the progress
DRAWS: Final = 2  # sets of random leads for every kernel and dilation
BIASES: Final = 4
TAPS: Final = 9
MOST_LEADS: Final = 9
BATCH: Final = 128
SURE: Final = 0.99  # a probability is kept within this and its complement
_FAR: Final = 5.0  # standard deviations at which a feature is cut off
# (views, share of the median squared distance over which the kernel falls by a factor e, ridge): the best
# of eight ridges in steps of a factor of three, each maximum flat, on the training patients.
_REGRESSIONS: Final = (((0,), 2.0, 1.0), ((1,), 1.0, 1.0), ((0, 1), 2.0, 0.3))
Floats = NDArray[np.float32]


def cross_fitted(
    examples: list[Example], targets: Floats, seed: int, tick: Callable[[], None] = lambda: None
) -> Floats:
    """Return, for every example, the logits of regressions on other patients.

    Args:
        examples: of the training patients.
        targets: float32 [n, targets], 0 or 1, NaN where unknown.
        seed: of folds and convolutions.
        tick: called :data:`STEPS` times, for a progress bar.

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
    views = _views([example.record for example in examples], seed, tick)
    patients = sorted({example.patient for example in examples})
    order = np.random.default_rng(seed).permutation(len(patients)) % FOLDS
    of_patient = dict(zip(patients, order, strict=True))
    fold = np.array([of_patient[example.patient] for example in examples])
    believed = np.empty(targets.shape, np.float64)
    for k in range(FOLDS):
        learn, judge = fold != k, fold == k
        believed[judge] = _regress([v[learn] for v in views], targets[learn], [v[judge] for v in views])
        tick()
    return _logits(believed)


def judged(
    examples: list[Example],
    targets: Floats,
    records: list[Record],
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> Floats:
    """Return the logits of regressions on all examples, for records that are none of them.

    Args:
        examples: of the training patients.
        targets: float32 [n, targets], 0 or 1, NaN where unknown.
        records: to be judged; what is made of them is held in memory at once, 90 kB each.
        seed: of the convolutions.
        tick: called ``len(DILATIONS)`` times, for a progress bar.

    Returns:
        float32 [len(records), targets].
    """
    views = _views([example.record for example in examples] + records, seed, tick)
    n = len(examples)
    return _logits(_regress([view[:n] for view in views], targets, [view[n:] for view in views]))


def calibrated(unseen: Floats, targets: Floats, logits: Floats) -> Floats:
    """Return logits as probabilities mean them: ridge regression shrinks what is rare towards its share.

    Args:
        unseen: float32 [examples, targets], of :func:`cross_fitted`.
        targets: float32 [examples, targets], 0 or 1, NaN where unknown.
        logits: float32 [n, targets], to be stretched and shifted as makes ``unseen`` likeliest (Platt, 1999).

    Returns:
        float32 [n, targets]; a target of which all known values agree stays as it is.
    """
    out = logits.copy()
    for k in range(targets.shape[1]):
        known = np.isfinite(targets[:, k])
        if len(np.unique(targets[known, k])) == 2:
            fit = LogisticRegression().fit(unseen[known, k : k + 1], targets[known, k])
            out[:, k] = fit.decision_function(logits[:, k : k + 1])
    return out


def _views(records: list[Record], seed: int, tick: Callable[[], None]) -> tuple[Floats, Floats]:
    signals = np.stack([_samples(record) for record in records])
    beats = np.stack([_beat_view(measure(record)) for record in records])
    return random_convolutions(signals, seed, tick), beats


def _logits(believed: NDArray[np.float64]) -> Floats:
    believed = believed.clip(1 - SURE, SURE)
    return np.log(believed / (1 - believed)).astype(np.float32)


def random_convolutions(signals: Floats, seed: int, tick: Callable[[], None] = lambda: None) -> Floats:
    """Return features of records that need no training and no labels.

    Args:
        signals: float32 [n, 12, samples], mV.
        seed: of leads and thresholds.
        tick: called for each dilation.

    Returns:
        float32 [n, features]. A kernel sums the same pattern over some random leads; of its response count
        the share above each of four thresholds, the maximum and the deviation.
    """
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(signals - np.median(signals, axis=2, keepdims=True).astype(np.float32))
    some = x[rng.permutation(len(x))[:64]]
    patterns = np.full((84, TAPS), -1.0, np.float32)
    for row, high in zip(patterns, itertools.combinations(range(TAPS), 3), strict=True):
        row[list(high)] = 2.0
    features = []
    for dilation in DILATIONS:
        weight = np.zeros((DRAWS * len(patterns), x.shape[1], TAPS), np.float32)
        for row, pattern in zip(weight, itertools.cycle(patterns), strict=False):
            count = int(2 ** rng.uniform(0, np.log2(MOST_LEADS)))
            row[rng.choice(x.shape[1], count, replace=False)] = pattern
        kernels = torch.from_numpy(weight)
        seen = torch.nn.functional.conv1d(some, kernels, dilation=dilation).transpose(0, 1).flatten(1)
        levels = torch.from_numpy(np.sort(rng.uniform(0.02, 0.98, BIASES)).astype(np.float32))
        bias = torch.quantile(seen[:, ::7], levels, dim=1).unsqueeze(-1)  # [biases, kernels, 1]
        rows = []
        for batch in x.split(BATCH):
            response = torch.nn.functional.conv1d(batch, kernels, dilation=dilation)
            shares = [(response > level).float().mean(-1) for level in bias]
            rows.append(torch.cat([*shares, response.amax(-1), response.std(-1)], 1))
        features.append(torch.cat(rows))
        tick()
    return np.asarray(torch.cat(features, 1).numpy(), np.float32)


def _beat_view(measured: Measurements) -> Floats:
    """The median beats, large voltages compressed, and the rhythm: float32 [12 x 39 + 2]."""
    beats = np.nan_to_num(measured.beats).ravel()
    rhythm = [
        np.log((measured.rate_bpm or 75.0) / 75.0),
        np.log(max(measured.irregularity or 0.03, 0.003) / 0.03),
    ]
    root = np.sign(beats) * np.sqrt(np.abs(beats) + 1e-3)
    return np.asarray(np.concatenate([root, rhythm]), np.float32)


def _regress(learn: list[Floats], targets: Floats, judge: list[Floats]) -> NDArray[np.float64]:
    """Return what the mean of all regressions believes, float64 [judged, targets]; an unknown target
    counts as its mean.
    """
    known = np.isfinite(targets)
    mean = np.where(known, targets, 0).sum(0) / known.sum(0).clip(min=1)
    wanted = np.where(known, targets - mean, 0).astype(np.float64)
    scaled = [_scale(a, b) for a, b in zip(learn, judge, strict=True)]
    beliefs = []
    for views, width, ridge in _REGRESSIONS:
        a, b = (np.concatenate([scaled[view][part] for view in views], 1) for part in (0, 1))
        apart = _squared_distances(a, a)
        fall = width * float(np.median(apart)) + 1e-9
        weights = np.linalg.solve(np.exp(-apart / fall) + ridge * np.eye(len(a)), wanted)
        beliefs.append(np.exp(-_squared_distances(b, a) / fall) @ weights)
    return np.asarray(mean + np.mean(beliefs, axis=0), np.float64)


def _scale(learn: Floats, judge: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Standardise by those learnt from; views of any number of features come to weigh the same."""
    middle, spread = learn.mean(0), learn.std(0) + 1e-6
    weight = learn.shape[1] ** -0.5
    one, two = (((part - middle) / spread).clip(-_FAR, _FAR) * weight for part in (learn, judge))
    return one, two


def _squared_distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T).clip(min=0)


def _samples(record: Record) -> Floats:
    """Ten seconds at 100 Hz, float32 [12, 1000]; a shorter record ends in zeros."""
    signal = resample_poly(np.nan_to_num(record.signal), FS, round(record.fs), axis=1)[:, :SAMPLES]
    return np.pad(signal, ((0, 0), (0, SAMPLES - signal.shape[1]))).astype(np.float32)
