"""Measurements of beats whose instants this file set, and of the shipped real records."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

import pulse_edge
from pulse_edge.ecg.measure import BEAT_SAMPLES, measure
from pulse_edge.ecg.record import Record, read_record

SAMPLES = Path(pulse_edge.__file__).parent / "assets" / "samples"
GAINS = np.array([0.6, 1.0, 0.5, -0.8, 0.15, 0.7, -0.5, -0.8, 0.4, 0.9, 1.1, 0.8])[:, None]


def beats_at(instants, fs=500.0, seconds=10.0, noise=0.0, qrs=0.012, seed=0):
    """A record with P, QRS and T at the given instants of R, and noise in mV."""
    t = np.arange(round(seconds * fs)) / fs

    def bumps(shift, width, height):
        return height * np.exp(-0.5 * ((t[:, None] - (np.asarray(instants) + shift)) / width) ** 2).sum(
            axis=1
        )

    wave = bumps(-0.16, 0.025, 0.12) + bumps(0, qrs, 1.0) - bumps(0.03, qrs, 0.25) + bumps(0.24, 0.05, 0.28)
    rng = np.random.default_rng(seed)
    wander = 0.2 * np.sin(2 * np.pi * 0.25 * t) if noise else 0.0
    signal = GAINS * wave + wander + noise * rng.standard_normal((12, len(t)))
    return Record(signal.astype(np.float32), fs)


@pytest.mark.parametrize("rate", [30, 45, 60, 72, 88, 110, 140, 180])
@pytest.mark.parametrize("fs", [100, 200, 257, 500, 1000])
@pytest.mark.parametrize("noise", [0.0, 0.04])
def test_the_rate_of_regular_beats(rate, fs, noise):
    instants = np.arange(0.4, 9.7, 60 / rate)
    found = measure(beats_at(instants, fs, noise=noise))
    assert found.rate_bpm == pytest.approx(rate, abs=1)
    assert len(found.r_peaks_s) == len(instants)
    offset = found.r_peaks_s - instants
    assert np.abs(offset).max() < 0.05
    assert np.abs(offset - np.median(offset)).max() < 0.02  # the same point of every complex
    if found.irregularity is not None:
        assert found.irregularity < 0.01 + rate / 60 / fs  # the second part is rounding to samples


@pytest.mark.parametrize("seed", range(5))
def test_irregular_beats(seed):
    rr = np.random.default_rng(seed).uniform(0.45, 1.1, 30)
    instants = 0.5 + np.cumsum(rr)
    instants = instants[instants < 9.6]
    found = measure(beats_at(instants, noise=0.03, seed=seed))
    true = np.diff(instants)
    assert found.rate_bpm == pytest.approx(60 / true.mean(), abs=1)
    assert found.irregularity == pytest.approx(np.abs(np.diff(true)).mean() / true.mean(), abs=0.02)
    assert found.irregularity > 0.1


def test_wide_complexes_are_counted_once():
    instants = np.arange(0.5, 9.7, 0.8)
    found = measure(beats_at(instants, qrs=0.035, noise=0.02))
    assert len(found.r_peaks_s) == len(instants)


def test_one_bad_lead_does_not_decide():
    instants = np.arange(0.5, 9.7, 0.75)
    record = beats_at(instants, noise=0.02)
    record.signal[7] += 5 * np.random.default_rng(1).standard_normal(record.signal.shape[1])
    record.signal[8] = np.nan
    found = measure(record)
    assert found.rate_bpm == pytest.approx(80, abs=1)


def test_the_median_beat_is_the_beat():
    found = measure(beats_at(np.arange(0.5, 9.7, 0.8), fs=500, noise=0.03))
    assert found.beats.shape == (12, BEAT_SAMPLES) == (12, 39)
    assert found.beats.dtype == np.float32
    peak = found.beats[:, 14]  # 0.28 s at 50 Hz
    np.testing.assert_allclose(peak, GAINS[:, 0], atol=0.12)
    assert abs(found.beats[1].argmax() - 14) <= 1
    assert found.beats[1, 24:29].max() == pytest.approx(0.28, abs=0.06)  # T, 0.24 s after R


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_flat_record_has_no_beats(level):
    found = measure(Record(np.full((12, 5000), level, np.float32), 500.0))
    assert len(found.r_peaks_s) == 0
    assert found.rate_bpm is None
    assert found.irregularity is None
    assert np.isnan(found.beats).all()


@pytest.mark.parametrize("fs", [100, 200, 500, 1000])
@pytest.mark.parametrize("level", [1e-4, 0.02, 1.0])
def test_noise_has_no_rate(fs, level):
    noise = level * np.random.default_rng(fs).standard_normal((12, 10 * fs))
    assert measure(Record(noise.astype(np.float32), float(fs))).rate_bpm is None


def test_all_samples_missing():
    found = measure(Record(np.full((12, 2000), np.nan, np.float32), 200.0))
    assert found.rate_bpm is None


@pytest.mark.parametrize("fs", [50, 80, 5000])
def test_extreme_sampling_rates(fs):
    found = measure(beats_at(np.arange(0.5, 9.5, 1.0), fs, qrs=0.02))
    assert found.rate_bpm == pytest.approx(60, abs=1)


@pytest.mark.parametrize("seconds", [1.0, 2.0])
def test_short_records(seconds):
    found = measure(beats_at([0.5], 200.0, seconds=seconds))
    assert found.rate_bpm is None
    assert len(found.r_peaks_s) <= 2


def rows():
    with (SAMPLES / "samples.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["record"])
def test_the_shipped_records_are_plausible(row):
    record = read_record(SAMPLES / row["record"])
    assert record.problems == ()
    found = measure(record)
    assert 45 < found.rate_bpm < 150
    rr = np.diff(found.r_peaks_s)
    assert rr.min() > 0.3
    assert rr.max() < 2.0
    assert np.isfinite(found.beats).all()
    codes = set(re.split(r"[;,]", row["codes"]))
    if "AFIB" in codes:
        assert found.irregularity > 0.1
    elif "SR" in codes and not codes & {"PVC", "PAC", "SARRH"}:
        assert found.irregularity < 0.1
        assert 59 < found.rate_bpm < 101  # sinus rhythm that is neither brady- nor tachycardia
