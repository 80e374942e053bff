"""Simulate 12-lead ECGs whose truth is known: rate, intervals, axis, rhythm, blocks, territories.

Timing is `rhythm.py`'s, the electrical model `dipole.py`'s; `waves.py` says which parts a beat is made
of, `heart.py` what there is to choose.

Not covered: what only a real heart shows. A model may be pretrained on these records, never judged on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.dipole import DOWER, Bump, Plateau, dipole, frontal_axis, project
from pulse_edge.ecg.heart import Heart, check
from pulse_edge.ecg.leads import complete
from pulse_edge.ecg.record import Record
from pulse_edge.ecg.rhythm import FLUTTER_BPM, Beat, beats
from pulse_edge.ecg.waves import SPREADING_S, moved, p_wave, qt_s, repolarisation, usual_qrs, wide_qrs


@dataclass(frozen=True)
class Simulated:
    """A simulated record and its truth.

    Attributes:
        record: the twelve leads.
        heart: what was asked for.
        codes: SCP statements that hold by construction.
        beats: the ventricular beats within the record.
        rate_bpm: from the mean RR interval of those beats; None with fewer than three.
        pr_ms: of a conducted sinus beat, None where there is none or it varies.
        qrs_ms: of a usual beat.
        qt_ms: onset of QRS to the end of T at the mean RR interval.
        axis_deg: frontal axis of a usual QRS complex, measured on its leads.
    """

    record: Record
    heart: Heart
    codes: frozenset[str]
    beats: tuple[Beat, ...]
    rate_bpm: float | None
    pr_ms: float | None
    qrs_ms: float
    qt_ms: float
    axis_deg: float


def simulate(heart: Heart, seed: int, duration_s: float = 10.0, fs: float = 500.0) -> Simulated:
    """Simulate one record.

    Args:
        heart: what to simulate.
        seed: of everything random.
        duration_s: seconds.
        fs: hertz.

    Raises:
        UserError: a value is out of range, or a block or bundle is asked for that the rhythm cannot have.
    """
    check(heart)
    rng = np.random.default_rng(seed)
    samples = round(duration_s * fs)
    timed, alone = beats(
        heart.rhythm, heart.block, heart.ectopy, heart.rate_bpm, heart.pr_ms / 1e3, duration_s, rng
    )
    usual = usual_qrs(heart)
    wide = wide_qrs(SPREADING_S, towards=(0.9, -0.5, -0.6))
    parts: list[Bump | Plateau] = [p_wave(p, False) for p in alone]
    for beat in timed:
        if beat.p_s is not None:
            parts.append(p_wave(beat.p_s, beat.premature_atrial))
        if beat.origin == "paced":
            parts.append(Bump(beat.qrs_s - 0.004, beat.qrs_s, (0.6, 1.2, 0.3)))
        qrs = wide if beat.origin == "ventricular" else usual
        parts += [moved(bump, beat.qrs_s) for bump in qrs]
        parts += repolarisation(heart, beat, qrs)
    moment = dipole(parts, samples, fs) * heart.gain
    moment += _atrial_activity(heart, samples, fs, rng)
    signal = project(moment) + _disturbance(heart, samples, fs, rng)
    shown = tuple(beat for beat in timed if 0 <= beat.qrs_s < duration_s - 0.05)
    rr = np.diff([beat.qrs_s for beat in shown])
    conducted = heart.rhythm == "sinus" and heart.block in ("none", "first", "mobitz2")
    return Simulated(
        Record(signal.astype(np.float32), fs, f"simulated-{seed}"),
        heart,
        _codes(heart, shown),
        shown,
        60.0 / float(rr.mean()) if len(rr) >= 2 else None,
        heart.pr_ms if conducted else None,
        max(bump.end_s for bump in usual) * 1e3,
        qt_s(heart, float(rr.mean()) if len(rr) else 60.0 / heart.rate_bpm) * 1e3,
        frontal_axis(dipole(usual, 400, 1000.0)),
    )


def _atrial_activity(heart: Heart, samples: int, fs: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Fibrillation or flutter waves, a dipole float64 [3, samples]; strongest in V1 and the lower leads."""
    t = np.arange(samples) / fs
    if heart.rhythm == "afib":
        out = np.zeros((3, samples))
        for _ in range(4):
            hertz = rng.uniform(4.5, 8.0)
            wobble = rng.uniform(0.2, 0.8) * np.sin(2 * np.pi * rng.uniform(0.1, 0.5) * t)
            wave = np.sin(2 * np.pi * hertz * t + wobble + rng.uniform(0, 2 * np.pi))
            out += np.outer(rng.normal(0, (0.012, 0.02, 0.03)), wave)
        return out
    if heart.rhythm == "flutter":
        phase = (t * FLUTTER_BPM / 60.0) % 1.0
        saw = np.where(phase < 0.7, phase / 0.7, (1 - phase) / 0.3) - 0.5
        return np.outer(np.array([0.02, -0.22, -0.06]), saw)
    return np.zeros((3, samples))


def _disturbance(heart: Heart, samples: int, fs: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Muscle noise and wander, float64 [12, samples]; made on eight leads, so that Einthoven's law holds."""
    t = np.arange(samples) / fs
    rows = {}
    for lead in DOWER:
        wander = sum(
            rng.uniform(0, 1) * np.sin(2 * np.pi * rng.uniform(0.05, 0.45) * t + rng.uniform(0, 2 * np.pi))
            for _ in range(3)
        )
        rows[lead] = rng.normal(0, heart.noise_mv, samples) + heart.wander_mv * wander / 3
    return complete(rows).astype(np.float64)


def _codes(heart: Heart, shown: tuple[Beat, ...]) -> frozenset[str]:
    """What holds by construction, in PTB-XL's SCP codes."""
    codes = set()
    codes |= {"sinus": {"SR"}, "afib": {"AFIB"}, "flutter": {"AFLT"}, "paced": {"PACE"}}[heart.rhythm]
    codes |= {"lbbb": {"CLBBB"}, "rbbb": {"CRBBB"}, "lafb": {"LAFB"}}.get(heart.bundle, set())
    codes |= {"lvh": {"LVH"}, "rvh": {"RVH"}}.get(heart.chamber, set())
    codes |= {"first": {"1AVB"}, "mobitz1": {"2AVB"}, "mobitz2": {"2AVB"}, "third": {"3AVB"}}.get(
        heart.block, set()
    )
    if any(beat.origin == "ventricular" for beat in shown):
        codes.add("PVC")
    if any(beat.premature_atrial for beat in shown):
        codes.add("PAC")
    codes |= {"STE_" if size > 0 else "STD_" for size in heart.st_mv.values()}
    if heart.rhythm == "sinus" and heart.block in ("none", "first"):
        codes |= {"SBRAD"} if heart.rate_bpm < 50 else {"STACH"} if heart.rate_bpm > 105 else set()
    return frozenset(codes)
