"""When atria and ventricles beat: the timing of a simulated rhythm.

Sinus rhythm varies with respiration and with the ten-second (Mayer) wave as in McSharry et al. (IEEE
Trans. Biomed. Eng. 2003). In atrial fibrillation successive RR intervals are independent, with a
coefficient of variation of about a quarter (Bootsma et al., Circulation 1970).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

Rhythm = Literal["sinus", "afib", "flutter", "paced"]
Block = Literal["none", "first", "mobitz1", "mobitz2", "third"]
Ectopy = Literal["none", "pvc", "pac"]
Origin = Literal["conducted", "ventricular", "escape", "paced"]

FLUTTER_BPM: Final = 300.0
ESCAPE_BPM: Final = 38.0
LEAD_IN_S: Final = 3.0  # beats before the record begins, so that its first T wave is there


@dataclass(frozen=True)
class Beat:
    """One ventricular beat.

    Attributes:
        qrs_s: onset of the QRS complex, seconds from the record's beginning.
        p_s: onset of the P wave that led to it, or None.
        origin: what excited the ventricles.
        premature_atrial: the P wave comes early and from another place.
        rr_s: the interval that preceded it.
    """

    qrs_s: float
    p_s: float | None
    origin: Origin
    rr_s: float
    premature_atrial: bool = False


def beats(
    rhythm: Rhythm,
    block: Block,
    ectopy: Ectopy,
    rate_bpm: float,
    pr_s: float,
    duration_s: float,
    rng: np.random.Generator,
) -> tuple[list[Beat], list[float]]:
    """Return the ventricular beats, and the onsets of P waves that no beat follows.

    Args:
        rhythm: what leads.
        block: between atria and ventricles; only in sinus rhythm.
        ectopy: which beats come early; not in flutter or complete block.
        rate_bpm: of the ventricles; of the atria where beats are dropped.
        pr_s: from the onset of P to the onset of QRS, of the first beat of a Wenckebach period.
        duration_s: of the record.
        rng: draws the variation.
    """
    mean = 60.0 / rate_bpm
    if rhythm == "afib":
        return _fibrillation(mean, ectopy, duration_s, rng), []
    if rhythm == "flutter":
        return _flutter(mean, duration_s, rng), []
    if rhythm == "paced":
        times = np.arange(-LEAD_IN_S, duration_s + mean, mean) + rng.uniform(0, mean)
        return [Beat(float(t), None, "paced", mean) for t in times], []
    atrial = _sinus(mean, duration_s, rng)
    if block == "third":
        start = -LEAD_IN_S + rng.uniform(0, 1)
        escape = 60.0 / (ESCAPE_BPM * rng.uniform(0.9, 1.1))
        ventricular = np.arange(start, duration_s + escape, escape)
        return [Beat(float(t), None, "escape", escape) for t in ventricular], atrial
    if block in ("mobitz1", "mobitz2"):
        return _dropping(atrial, block, pr_s, rng)
    return _conducted(atrial, ectopy, pr_s, mean, rng), []


def _sinus(mean: float, duration_s: float, rng: np.random.Generator) -> list[float]:
    depth, phase, slow = rng.uniform(0.005, 0.025), rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.0, 0.01)
    times = [-LEAD_IN_S + float(rng.uniform(0, mean))]
    while times[-1] < duration_s + mean:
        t = times[-1]
        swing = depth * np.sin(2 * np.pi * 0.25 * t + phase[0]) + slow * np.sin(
            2 * np.pi * 0.1 * t + phase[1]
        )
        times.append(t + mean * (1 + float(swing)))
    return times


def _conducted(
    atrial: list[float], ectopy: Ectopy, pr_s: float, mean: float, rng: np.random.Generator
) -> list[Beat]:
    """Every P wave is followed; one beat in four to seven is premature, with its pause."""
    every = int(rng.integers(4, 8)) if ectopy != "none" else 0
    offset = int(rng.integers(0, every)) if every else 0
    out: list[Beat] = []
    shift = 0.0
    for number, p in enumerate(atrial):
        onset = p + shift
        early = bool(every) and number % every == offset and number > 0
        before = onset + pr_s - out[-1].qrs_s if out else mean
        if early and ectopy == "pvc":  # fully compensated: the next P wave is where it would have been
            at = onset + pr_s - mean * float(rng.uniform(0.3, 0.42))
            out.append(Beat(at, None, "ventricular", at - out[-1].qrs_s if out else mean))
        elif early and ectopy == "pac":  # it resets the sinus node
            advance = mean * float(rng.uniform(0.25, 0.38))
            shift -= advance
            out.append(Beat(onset - advance + pr_s, onset - advance, "conducted", before - advance, True))
        else:
            out.append(Beat(onset + pr_s, onset, "conducted", before))
    return out


def _dropping(
    atrial: list[float], block: Block, pr_s: float, rng: np.random.Generator
) -> tuple[list[Beat], list[float]]:
    period = int(rng.integers(3, 5))
    place = int(rng.integers(0, period))
    out: list[Beat] = []
    alone: list[float] = []
    for p in atrial:
        if place == period - 1:
            alone.append(p)
        else:
            # Wenckebach: the delay grows by less each time.
            extra = 0.12 * (1 - 0.5**place) if block == "mobitz1" else 0.0
            qrs = p + pr_s + extra
            out.append(Beat(qrs, p, "conducted", qrs - out[-1].qrs_s if out else 1.0))
        place = (place + 1) % period
    return out, alone


def _fibrillation(mean: float, ectopy: Ectopy, duration_s: float, rng: np.random.Generator) -> list[Beat]:
    spread = float(rng.uniform(0.18, 0.30))
    out: list[Beat] = []
    t = -LEAD_IN_S
    while t < duration_s + mean:
        rr = max(0.30, mean * float(rng.lognormal(-(spread**2) / 2, spread)))
        t += rr
        wild = ectopy == "pvc" and rng.random() < 0.15
        out.append(Beat(t, None, "ventricular" if wild else "conducted", rr))
    return out


def _flutter(mean: float, duration_s: float, rng: np.random.Generator) -> list[Beat]:
    wave = 60.0 / FLUTTER_BPM
    usual = max(2, round(mean / wave))
    changing = rng.random() < 0.4
    out: list[Beat] = []
    t = -LEAD_IN_S + float(rng.uniform(0, wave))
    while t < duration_s + mean:
        ratio = int(rng.choice([2, 3, 4])) if changing else usual
        t += ratio * wave
        out.append(Beat(t, None, "conducted", ratio * wave))
    return out
