"""Answers a machine can use: one JSON object of ``answer_schema.json`` about a page, whatever the weights.

Findings come from label scoring, calibrated where the model is. Values come from the questions that the model
was trained on, answered inside a grammar (``compose``), or from one object that it writes itself, inside the
schema's grammar (``direct``). A value is null where no question stands for it, and where the model would
rather have said something else: its own probability of staying inside the grammar is below :data:`SUPPORT`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pulse_edge.ecg.instruct import REPORT_QUESTION
from pulse_edge.errors import UserError
from pulse_edge.evaluate.answers import Measure
from pulse_edge.runtimes.conversation import Limits
from pulse_edge.runtimes.grammar import CLOSING, Vocabulary, constrain

if TYPE_CHECKING:
    from pulse_edge.runtimes.session import Picture, Session

SUPPORT: Final = 0.5  # the model's own odds are even
SCHEMA_FILE: Final = Path(__file__).with_name("answer_schema.json")
_VALUES: Final = ("rate", "rhythm", "intervals", "axis")  # in the order they are asked for


@cache
def answer_schema() -> dict[str, Any]:
    """Return the published JSON schema of an answer."""
    schema: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return schema


def field_schema(name: str) -> dict[str, Any]:
    """Return the schema of one value, e.g. of ``intervals.pr``."""
    schema: Any = answer_schema()
    for part in name.split("."):
        schema = schema["properties"][part]
    return {key: value for key, value in schema.items() if key != "description"}


def structured(
    session: Session,
    image: Picture,
    max_new_tokens: int | None = None,
    time_limit: float | None = None,
    cancel: Callable[[], bool] | None = None,
    support: float = SUPPORT,
) -> dict[str, Any]:
    """Return one object of :func:`answer_schema` about a page.

    Args:
        session: of the model.
        image: a path, a Pillow image, or uint8 [H, W, 3] RGB.
        max_new_tokens: bounds the report; the session's bound by default.
        time_limit: seconds; labels that were not scored by then are missing, values that are not there are
            null, and the report ends where it is.
        cancel: asked before every token; True ends the answer likewise.
        support: see :data:`SUPPORT`; 0 takes every value that the grammar allows.

    Raises:
        ImageError: the picture cannot be used.
        UserError: the model's context has no room for the answer.
        MissingExtraError: llguidance is not installed.
    """
    limits = Limits(time_limit, cancel)
    vocabulary = session.vocabulary()
    budget = session.max_new_tokens if max_new_tokens is None else max_new_tokens
    answer: dict[str, Any] = {
        "schema": 1,
        "calibrated": session.calibration is not None,
        "findings": session.findings(image, limits.left(), cancel),
        "rate": None,
        "rhythm": None,
        "intervals": dict.fromkeys(answer_schema()["properties"]["intervals"]["properties"]),
        "axis": None,
        "report": "",
    }
    if session.finish_reason != "stop":
        return answer
    if session.answers.mode == "direct":
        return answer | _direct(session, vocabulary, image, budget, limits)
    for name, measure in session.answers.measures.items():
        session.finish_reason = limits()
        if session.finish_reason is not None:
            return answer
        group, _, part = name.rpartition(".")
        place = answer[group] if group else answer
        place[part] = _value(session, vocabulary, image, name, measure, support, limits)
    pieces = session.chat(
        image, [(REPORT_QUESTION, None)], budget, time_limit=limits.left(), cancel=limits.cancel
    )
    answer["report"] = "".join(pieces).strip()
    return answer


def _value(
    session: Session,
    vocabulary: Vocabulary,
    image: Picture,
    name: str,
    measure: Measure,
    support: float,
    limits: Limits,
) -> int | str | None:
    """Ask for one value; None where the model gives none."""
    schema = field_schema(name)
    texts = [text for text in schema.get("enum", ()) if text is not None]
    numbers = [one for one in schema.get("anyOf", ()) if one["type"] == "integer"]
    longest = max([len(text.encode()) for text in texts] + [len(str(one["maximum"])) for one in numbers])
    before, after = f" {measure.before}", measure.after
    choices = [json.dumps(text) for text in texts] + [f"%json {json.dumps(one)}" for one in numbers]
    grammar = f"start: {json.dumps(before)} value {json.dumps(after) if after else '/[.,]/'}\n"
    grammar += f"value: {' | '.join(choices)}\n"
    logits = session.logits(image, measure.question)
    room = session.backend.context - session.backend.position + 1
    budget = min(len(before.encode()) + longest + len(after.encode() or b"."), room)  # a token has a byte
    said = constrain(session.backend, vocabulary, grammar, logits, budget, halt=limits)
    if not said.complete or said.support < support:
        return None
    value = said.text[len(before) : -len(after or ".")]
    return value if texts else int(value)


def _direct(
    session: Session, vocabulary: Vocabulary, image: Picture, budget: int, limits: Limits
) -> dict[str, Any]:
    """Let the model write the object; nothing if time or the caller ended it."""
    names = [*_VALUES, "report"]
    properties = {name: answer_schema()["properties"][name] for name in names}
    schema = {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
    logits = session.logits(image, session.answers.question)
    room = session.backend.context - session.backend.position + 1
    frame = 1 + _longest(schema) + CLOSING
    if room <= frame:
        raise UserError(
            f"The model's context of {session.backend.context} tokens has no room for a whole answer. "
            "Ask for a report instead, or use a model with a longer context."
        )
    said = constrain(
        session.backend,
        vocabulary,
        f"start: /[ ]?/ answer\nanswer: %json {json.dumps(schema)}\n",
        logits,
        min(frame + budget, room),
        weigh=False,
        closing=CLOSING,
        last=(b'"report":"', budget + CLOSING),
        halt=limits,
    )
    session.finish_reason = said.reason
    if not said.complete:
        return {}
    answer: dict[str, Any] = json.loads(said.text)
    return answer | {"report": answer["report"].strip()}


def _longest(schema: dict[str, Any]) -> int:
    """Return how many bytes the longest text of a schema has; strings without bounds count as empty."""
    if "enum" in schema:
        return max(len(json.dumps(value)) for value in schema["enum"])
    if "anyOf" in schema:
        return max(map(_longest, schema["anyOf"]))
    if schema["type"] == "object":
        inner = schema["properties"]
        return 1 + sum(len(json.dumps(name)) + 2 + _longest(value) for name, value in inner.items())
    return {"integer": len(str(schema.get("maximum"))), "null": 4, "string": 2}[schema["type"]]
