"""The nine sets of ECGBench, as data: labels, letters and sizes (paper arXiv 2410.19008, table 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Protocol = Literal["published", "strict"]
PROTOCOLS: Final = ("published", "strict")
SEED: Final = 42  # of the published evaluator's guesses

LETTERS: Final = "ABCDEFGH"
MULTILABEL: Final = "multilabel"
CHOICE: Final = "choice"
OPTIONS: Final = "options"
JUDGED: Final = "judged"


@dataclass(frozen=True)
class BenchSet:
    """How one set is asked and scored.

    Attributes:
        name: the configuration's name on the hub, and the stem of its reference file.
        kind: ``multilabel``, ``choice`` (one letter), ``options`` (a set of them) or ``judged``.
        labels: the label space, in the order of the published evaluator; multilabel only.
        letters: what the published evaluator guesses among; choice only.
        rows: number of answers without which the published evaluator gives no score; choice only.
        aspects: what the judge scores, each from 0 to 10; judged only.
    """

    name: str
    kind: str
    labels: tuple[str, ...] = ()
    letters: str = ""
    rows: int = 0
    aspects: tuple[str, ...] = ()


# In the order in which the published evaluator scores them, which decides what its one generator gives.
SETS: Final[Mapping[str, BenchSet]] = {
    item.name: item
    for item in (
        BenchSet("mmmu-ecg", CHOICE, letters=LETTERS[:4], rows=200),
        BenchSet("ptb-test", MULTILABEL, labels=("NORM", "MI", "STTC", "CD", "HYP")),
        BenchSet(
            "cpsc-test",
            MULTILABEL,
            labels=("NORM", "AF", "I-AVB", "LBBB", "RBBB", "PAC", "PVC", "STD", "STE"),
        ),
        BenchSet("csn-test-no-cot", CHOICE, letters=LETTERS, rows=1611),
        BenchSet("g12-test-no-cot", CHOICE, letters=LETTERS, rows=2026),
        BenchSet("ecgqa-test", OPTIONS),
        BenchSet(
            "code15-test",
            MULTILABEL,
            labels=("NORM", "ABNORMAL", "1dAVb", "RBBB", "LBBB", "SB", "ST", "AF"),
        ),
        BenchSet("ptb-test-report", JUDGED, aspects=("Diagnosis", "Waveform", "Rhythm")),
        BenchSet("arena", JUDGED, aspects=("Accuracy", "Completeness", "Instruction Adherence")),
    )
}
