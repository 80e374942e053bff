"""Questions and answers about an ECG, made from its labels and measurements.

The shape follows ECGInstruct (Liu et al., arXiv 2410.19008): closed questions, a question with a
number for an answer, and a clinical report. The wording is ours. Nothing is stated that a label or
a measurement does not support: a finding is denied only where the scheme that the record was labelled
by can assign its code and did not.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

REPORT_QUESTION: Final = "Please write a clinical report based on this ECG image."
RATE_QUESTIONS: Final = (
    "What is the heart rate?",
    "What is the heart rate in this ECG?",
    "How fast is the heart beating?",
)
CLOSED_QUESTIONS: Final = (
    "Does this ECG show {phrase}?",
    "Is there {phrase} in this ECG?",
    "Can you see {phrase} here?",
)
SUPERCLASS_PHRASES: Final = {
    "NORM": "a normal ECG",
    "MI": "myocardial infarction",
    "STTC": "ST or T wave changes",
    "CD": "a conduction disturbance",
    "HYP": "hypertrophy",
}
# PTB-XL's SCP codes -> our wording; several codes may share one. Rhythms come first in a report.
RHYTHMS: Final = {
    "SR": "sinus rhythm",
    "AFIB": "atrial fibrillation",
    "AFLT": "atrial flutter",
    "STACH": "sinus tachycardia",
    "SBRAD": "sinus bradycardia",
    "SARRH": "sinus arrhythmia",
    "SVARR": "supraventricular arrhythmia",
    "SVTAC": "supraventricular tachycardia",
    "PSVT": "supraventricular tachycardia",
    "BIGU": "a bigeminal pattern",
    "TRIGU": "a trigeminal pattern",
    "PACE": "a paced rhythm",
}
FINDINGS: Final = {
    "IMI": "inferior myocardial infarction",
    "ASMI": "anteroseptal myocardial infarction",
    "AMI": "anterior myocardial infarction",
    "ALMI": "anterolateral myocardial infarction",
    "ILMI": "inferolateral myocardial infarction",
    "LMI": "lateral myocardial infarction",
    "PMI": "posterior myocardial infarction",
    "IPMI": "inferoposterior myocardial infarction",
    "IPLMI": "inferoposterolateral myocardial infarction",
    "INJAS": "anteroseptal subendocardial injury",
    "INJAL": "anterolateral subendocardial injury",
    "INJIN": "inferior subendocardial injury",
    "INJIL": "inferolateral subendocardial injury",
    "CLBBB": "complete left bundle branch block",
    "CRBBB": "complete right bundle branch block",
    "ILBBB": "incomplete left bundle branch block",
    "IRBBB": "incomplete right bundle branch block",
    "LAFB": "left anterior fascicular block",
    "LPFB": "left posterior fascicular block",
    "IVCD": "intraventricular conduction delay",
    "1AVB": "first degree AV block",
    "2AVB": "second degree AV block",
    "WPW": "Wolff-Parkinson-White pattern",
    "LPR": "a prolonged PR interval",
    "LVH": "left ventricular hypertrophy",
    "RVH": "right ventricular hypertrophy",
    "SEHYP": "septal hypertrophy",
    "VCLVH": "voltage criteria for left ventricular hypertrophy",
    "LAO/LAE": "left atrial enlargement",
    "RAO/RAE": "right atrial enlargement",
    "ISC_": "non-specific ischaemia",
    "ISCAL": "anterolateral ischaemia",
    "ISCIL": "inferolateral ischaemia",
    "ISCIN": "inferior ischaemia",
    "ISCAS": "anteroseptal ischaemia",
    "ISCLA": "lateral ischaemia",
    "ISCAN": "anterior ischaemia",
    "NDT": "non-diagnostic T wave changes",
    "NST_": "non-specific ST changes",
    "NT_": "non-specific T wave changes",
    "STD_": "ST depression",
    "STE_": "ST elevation",
    "INVT": "inverted T waves",
    "LOWT": "low T waves",
    "TAB_": "a T wave abnormality",
    "ANEUR": "changes compatible with a ventricular aneurysm",
    "LNGQT": "a long QT interval",
    "DIG": "digitalis effect",
    "EL": "electrolyte or drug effect",
    "ABQRS": "an abnormal QRS",
    "QWAVE": "Q waves",
    "LVOLT": "low QRS voltage",
    "HVOLT": "high QRS voltage",
    "PVC": "ventricular premature beats",
    "PAC": "atrial premature beats",
    "PRC(S)": "premature beats",
}
# Findings with enough examples in PTB-XL to be asked about; absent codes can be denied.
ASKED: Final[tuple[str, ...]] = (
    "AFIB", "SARRH", "STACH", "SBRAD", "PVC", "PAC", "PACE", "IMI", "ASMI", "LVH", "LAFB", "IRBBB",
    "CRBBB", "CLBBB", "IVCD", "1AVB", "ABQRS", "QWAVE", "ISC_", "NDT", "STD_", "LAO/LAE", "INVT",
)  # fmt: skip
# How to ask for one value, and where it stands in the answer that is learnt; see evaluate/answers.py.
MEASURES: Final = {
    "rate": {"question": RATE_QUESTIONS[0], "answer": "The heart rate is {value} bpm."},
    "rhythm": {"question": REPORT_QUESTION, "answer": "Rhythm: {value}"},  # it comes first in a report
}


@dataclass(frozen=True)
class Facts:
    """What is known about one record.

    Attributes:
        codes: SCP codes, as PTB-XL gives them.
        superclasses: PTB-XL's diagnostic superclasses; empty when none is assigned.
        rate_bpm: measured heart rate, or None.
        assignable: the codes that the record's labels could state; an absent one of them is denied, any
            other is not known. None if it is all of PTB-XL's.
    """

    codes: frozenset[str]
    superclasses: frozenset[str]
    rate_bpm: float | None
    assignable: frozenset[str] | None = None

    def has(self, code: str) -> bool | None:
        """Whether the record has a finding; None if its labels do not tell."""
        if code in self.codes:
            return True
        return False if self.assignable is None or code in self.assignable else None


@dataclass(frozen=True)
class Turn:
    """One question with its answer.

    Attributes:
        kind: superclass, finding, rate, report or instruct.
        question: in words.
        answer: in words.
        about: the superclass or code that a closed question asks for.
    """

    kind: str
    question: str
    answer: str
    about: str = ""


def superclass_turns(facts: Facts, rng: random.Random, plain_share: float = 0.7) -> list[Turn]:
    """Ask for each of the five superclasses; none when the record has no superclass.

    Args:
        facts: the record.
        rng: picks the wording.
        plain_share: how often the first wording, which scoring uses, is taken.
    """
    if not facts.superclasses:
        return []
    turns = []
    for name, phrase in SUPERCLASS_PHRASES.items():
        template = CLOSED_QUESTIONS[0] if rng.random() < plain_share else rng.choice(CLOSED_QUESTIONS)
        turns.append(_closed("superclass", template, phrase, name in facts.superclasses, name))
    return turns


def finding_turns(facts: Facts, rng: random.Random, count: int = 3) -> list[Turn]:
    """Ask for ``count`` single findings, about half of them present where the record has any.

    They are fewer where the labels tell of fewer.
    """
    present = [code for code in ASKED if facts.has(code)]
    absent = [code for code in ASKED if facts.has(code) is False]
    picked = rng.sample(present, min(len(present), (count + 1) // 2))
    picked += rng.sample(absent, min(len(absent), count - len(picked)))
    return [finding_turn(code, code in facts.codes, rng) for code in picked]


def finding_turn(code: str, present: bool, rng: random.Random) -> Turn:
    """Ask for one finding, by its code."""
    return _closed("finding", rng.choice(CLOSED_QUESTIONS), _phrase(code), present, code)


def rate_turn(facts: Facts, rng: random.Random) -> list[Turn]:
    """Ask for the heart rate; none when it could not be measured."""
    if facts.rate_bpm is None:
        return []
    answer = MEASURES["rate"]["answer"].format(value=round(facts.rate_bpm))
    return [Turn("rate", rng.choice(RATE_QUESTIONS), answer)]


def report_turn(facts: Facts) -> Turn:
    """Ask for the clinical report: rhythm, rate, findings and conclusion."""
    return Turn("report", REPORT_QUESTION, report(facts))


def report(facts: Facts) -> str:
    """Return the report in our own fixed form; parts that nothing supports are left out."""
    rhythm = [text for code, text in RHYTHMS.items() if code in facts.codes]
    findings = [text for code, text in FINDINGS.items() if code in facts.codes]
    groups = [text for name, text in SUPERCLASS_PHRASES.items() if name in facts.superclasses]
    parts = []
    if rhythm:
        parts.append(f"Rhythm: {_join(rhythm)}.")
    if facts.rate_bpm is not None:
        parts.append(f"Rate: {round(facts.rate_bpm)} bpm.")
    if findings:
        parts.append(f"Findings: {_join(findings)}.")
    if groups:
        parts.append(f"Conclusion: {_join(groups)}.")
    return " ".join(parts)


def _join(items: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(items))


def _phrase(code: str) -> str:
    return RHYTHMS.get(code) or FINDINGS[code]


def _closed(kind: str, template: str, phrase: str, present: bool, about: str) -> Turn:
    return Turn(kind, template.format(phrase=phrase), "Yes" if present else "No", about)
