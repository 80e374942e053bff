"""Records between two records: ECGs that nobody had, for a student to ask its teacher about.

A student that meets 1,600 records many times learns them by heart; one that meets new inputs, each judged
by a patient teacher, learns the teacher's function instead (Beyer et al., "Knowledge distillation: a good
teacher is patient and consistent", CVPR 2022). Their new inputs are mixed pictures. Two mixed ECGs would
show the complexes of both side by side, so here the second is bent in time until its QRS complexes lie
upon those of the first, and then mixed in (mixup, Zhang et al., ICLR 2018): one heart, its rhythm the
first's, its beats between the two.

A morph has no label of its own; what :func:`pulse_edge.train.signal.judged` says is all that is known.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.ecg.measure import measure
from pulse_edge.ecg.record import Record
from pulse_edge.errors import UserError

SHARES: Final = (0.2, 0.8)  # of the second record
# Around a QRS complex time runs as in the record it comes from; only what lies between is bent. Seconds, and
# shares of the shorter RR interval for fast hearts.
BEFORE: Final = (0.25, 0.35)
AFTER: Final = (0.42, 0.55)
FEWEST: Final = 3  # complexes that a record must show to be bent
Times = NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """Which records a morph lies between.

    Attributes:
        first: index of the record whose rhythm it has.
        second: index of the other.
        share: of the second, in 0 to 1.
    """

    first: int
    second: int
    share: float


class Morphs:
    """Any number of morphs of some records, number ``k`` a function of ``(seed, k)`` only.

    Args:
        records: at least two of them with three QRS complexes or more.
        seed: of the choice.

    Raises:
        UserError: fewer than two records can be bent.
    """

    def __init__(self, records: Sequence[Record], seed: int) -> None:
        self.records, self.seed = records, seed
        self.peaks = [measure(record).r_peaks_s for record in records]
        self.usable = [k for k, peaks in enumerate(self.peaks) if len(peaks) >= FEWEST]
        if len(self.usable) < 2:
            raise UserError(
                f"Morphs need two records with {FEWEST} QRS complexes; {len(self.usable)} of {len(records)} "
                "have. Name more records with --data, or set morphs to 0 in the recipe."
            )

    def mixture(self, k: int) -> Mixture:
        """Say what morph ``k`` lies between."""
        rng = random.Random(f"morph {self.seed}/{k}")
        first, second = rng.sample(self.usable, 2)
        return Mixture(first, second, rng.uniform(*SHARES))

    def record(self, k: int) -> Record:
        """Make morph ``k``, with the length and sampling rate of its first record."""
        mixed = self.mixture(k)
        one, two = self.records[mixed.first], self.records[mixed.second]
        times = np.arange(one.signal.shape[1]) / one.fs
        at = bend(times, self.peaks[mixed.first], self.peaks[mixed.second]) * two.fs
        samples = np.arange(two.signal.shape[1])
        other = np.stack([np.interp(at, samples, lead) for lead in _level(two.signal)])
        signal = (1 - mixed.share) * _level(one.signal) + mixed.share * other
        return replace(one, signal=signal.astype(np.float32), name=f"morph {k}", comments=())


def bend(times: Times, first: Times, second: Times) -> Times:
    """Return the instants of the second record that belong to instants of the first.

    Args:
        times: of the first record, seconds, ascending.
        first: its QRS complexes, seconds, three or more.
        second: the other's.

    Returns:
        Seconds: complexes meet complexes, and the RR intervals of the second are gone through in turn, again
        and again if it has fewer. Before the first and after the last complex time runs on unbent.
    """
    out = np.empty_like(times)
    out[times < first[0]] = times[times < first[0]] - first[0] + second[0]
    intervals = len(second) - 1
    for k, (start, end) in enumerate(itertools.pairwise(first)):
        j = k % intervals
        shorter = min(end - start, second[j + 1] - second[j])
        after, before = (min(most, share * shorter) for most, share in (AFTER, BEFORE))
        inside = (times >= start) & (times < end)
        out[inside] = np.interp(
            times[inside],
            [start, start + after, end - before, end],
            [second[j], second[j] + after, second[j + 1] - before, second[j + 1]],
        )
    late = times >= first[-1]
    last = (len(first) - 1) % intervals or intervals
    out[late] = times[late] - first[-1] + second[last]
    return out


def _level(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every lead about its median, missing samples at it: two baselines add up to none."""
    filled = np.nan_to_num(signal)
    return np.asarray(filled - np.median(filled, axis=1, keepdims=True), np.float32)
