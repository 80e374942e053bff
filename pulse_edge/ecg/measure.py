"""Measure a record: QRS complexes, heart rate, rhythm regularity and the median beat of every lead.

QRS detection follows Pan and Tompkins (IEEE Trans. Biomed. Eng. 1985) in outline: band-pass,
derivative, square, moving average, adaptive threshold, here on the energy of all leads together,
so that a single noisy or low-voltage lead does not decide. The median beat is the usual way to
free a lead's waveform from noise and ectopic beats.

Not covered: delineation of P, QRS and T; the intervals belong to a later stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, find_peaks, sosfiltfilt

from pulse_edge.ecg.record import Record

BEAT_BEFORE_S: Final = 0.28
BEAT_AFTER_S: Final = 0.50
BEAT_FS: Final = 50.0
BEAT_SAMPLES: Final = round((BEAT_BEFORE_S + BEAT_AFTER_S) * BEAT_FS)  # 39
STANDS_OUT: Final = 4.0  # energy of complexes over the median; noise has 2, 300 real records had 22 and more


@dataclass(frozen=True)
class Measurements:
    """What was measured.

    Attributes:
        r_peaks_s: instants of the QRS complexes in seconds, float64 [k].
        rate_bpm: heart rate from the mean RR interval, or None with fewer than three complexes.
        irregularity: mean absolute successive RR difference over the mean RR; about 0.02 in a
            regular rhythm, above 0.1 in atrial fibrillation; None with fewer than four complexes.
        beats: median beat per lead in mV, float32 [12, 39] at 50 Hz from 0.28 s before R,
            baseline removed; NaN where it could not be formed.
    """

    r_peaks_s: NDArray[np.float64]
    rate_bpm: float | None
    irregularity: float | None
    beats: NDArray[np.float32]


def measure(record: Record) -> Measurements:
    """Measure a record of at least two seconds; NaN samples count as 0 mV."""
    signal = np.nan_to_num(record.signal.astype(np.float64))
    peaks = _qrs(signal, record.fs)
    rr = np.diff(peaks) / record.fs
    rate = 60.0 / float(rr.mean()) if len(rr) >= 2 else None
    irregular = float(np.abs(np.diff(rr)).mean() / rr.mean()) if len(rr) >= 3 else None
    return Measurements(peaks / record.fs, rate, irregular, _median_beats(signal, peaks, record.fs))


def _qrs(signal: NDArray[np.float64], fs: float) -> NDArray[np.int64]:
    high = min(20.0, 0.45 * fs)
    band = sosfiltfilt(butter(2, [6.0, high], "bandpass", fs=fs, output="sos"), signal, axis=1)
    spread = np.median(np.abs(band), axis=1, keepdims=True) + 1e-3
    # Each lead in units of its own noise, bounded so that one artefact lead cannot outshout eleven.
    energy = np.minimum(np.abs(np.diff(band / spread, axis=1)), 20.0).mean(axis=0) ** 2
    energy = uniform_filter1d(energy, max(1, round(0.10 * fs)))
    strong = np.percentile(energy, 98)
    if strong < max(1e-6, STANDS_OUT * float(np.median(energy))):
        return np.zeros(0, np.int64)  # noise or a flat line: a rate would be made up
    peaks, _ = find_peaks(energy, height=0.25 * strong, distance=max(1, round(0.26 * fs)))
    if not len(peaks):
        return np.zeros(0, np.int64)
    # The energy's maximum lies anywhere in the complex: move to the steepest common excursion.
    total = np.abs(band).sum(axis=0)
    half = max(1, round(0.06 * fs))
    moved = [lo + int(np.argmax(total[lo : p + half + 1])) for p in peaks for lo in (max(0, int(p) - half),)]
    return np.unique(np.asarray(moved, np.int64))


def _median_beats(signal: NDArray[np.float64], peaks: NDArray[np.int64], fs: float) -> NDArray[np.float32]:
    before, after = round(BEAT_BEFORE_S * fs), round(BEAT_AFTER_S * fs)
    usable = peaks[(peaks >= before) & (peaks + after < signal.shape[1])]
    if not len(usable):
        return np.full((signal.shape[0], BEAT_SAMPLES), np.nan, np.float32)
    windows = np.stack([signal[:, p - before : p + after + 1] for p in usable])
    windows = windows - np.median(windows, axis=2, keepdims=True)  # wander differs from beat to beat
    beat = np.median(windows, axis=0)
    at = (np.arange(BEAT_SAMPLES) / BEAT_FS) * fs
    out = np.stack([np.interp(at, np.arange(beat.shape[1]), lead) for lead in beat])
    return out.astype(np.float32)
