"""How a model is asked for what a structured answer holds: which questions it was trained on, as data.

A checkpoint's card, and from it a bundle's manifest, may have the field ``answers``::

    {"mode": "compose",
     "measures": {"rate": {"question": "What is the heart rate?", "answer": "It is {value} bpm."}}}

``compose`` asks each question by itself; what no question stands for is null. ``direct`` asks once, for the
whole object, with ``"question": "…"``: for models large enough to write one. Without the field, the questions
are those of ``ecg/instruct.py``, which pulse-nano and its students learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pulse_edge.ecg.instruct import MEASURES

FIELDS: Final = ("rate", "rhythm", "intervals.pr", "intervals.qrs", "intervals.qt", "intervals.qtc", "axis")
MODES: Final = ("compose", "direct")
VALUE: Final = "{value}"


@dataclass(frozen=True)
class Measure:
    """One question with the form of its answer.

    Attributes:
        question: as the model was trained on it.
        before: what the answer begins with, up to the value.
        after: what follows the value; empty where a full stop or a comma does.
    """

    question: str
    before: str
    after: str


@dataclass(frozen=True)
class Answers:
    """How a model is asked.

    Attributes:
        mode: of :data:`MODES`.
        question: for the mode ``direct``.
        measures: by name of :data:`FIELDS`.
    """

    mode: str
    question: str
    measures: Mapping[str, Measure]


def read_answers(document: Any) -> Answers:
    """Read the field ``answers`` of a card or manifest; None gives the questions of ``ecg/instruct.py``.

    Raises:
        ValueError: it is not of this form; the message says what is wrong.
    """
    if document is None:
        document = {"mode": "compose", "measures": MEASURES}
    if not isinstance(document, dict) or document.get("mode") not in MODES:
        raise ValueError(f"answers has no mode of {', '.join(MODES)}")
    question = document.get("question", "")
    if not isinstance(question, str) or (document["mode"] == "direct" and not question.strip()):
        raise ValueError("answers has no question to ask for the whole answer")
    measures = document.get("measures", {})
    if not isinstance(measures, dict) or not set(measures) <= set(FIELDS):
        raise ValueError(f"answers measures something else than {', '.join(FIELDS)}")
    return Answers(
        document["mode"], question, {name: _measure(name, entry) for name, entry in measures.items()}
    )


def _measure(name: str, entry: Any) -> Measure:
    question, answer = (
        (entry.get("question"), entry.get("answer")) if isinstance(entry, dict) else (None, None)
    )
    if not isinstance(question, str) or not isinstance(answer, str) or not question.strip():
        raise ValueError(f"answers to {name} lack a question or an answer")
    before, mark, after = answer.partition(VALUE)
    if not mark or VALUE in after or not (question + answer).isprintable():
        raise ValueError(f"the answer to {name} does not hold {VALUE} once, on one line")
    return Measure(question, before, after)
