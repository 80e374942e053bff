"""What PULSE's own evaluator reads in an answer, its peculiarities included (commit a439b6c, by behaviour).

Nothing here is what a careful reader would do; ``strict.py`` is. docs/ecgbench.md lists the differences.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pulse_edge.errors import UserError
from pulse_edge.evaluate.ecgbench.files import Answer
from pulse_edge.evaluate.ecgbench.sets import CHOICE, LETTERS, MULTILABEL, BenchSet

OPTION_SENTENCE: Final = "The correct option is "
ANSWER_MARK: Final = "Answer:"
OPTIONS_MARK: Final = "Options:"
INSTRUCTION: Final = "Only answer based on the given Options without any explanation."

NO_TEXT: Final = "answer without text: the answer of the line above was counted again"
NO_PROMPT: Final = "answer without its prompt: the options of the line above were taken"
TWICE: Final = "question answered twice: both answers were counted"
GUESSED: Final = "no letter was found: one was drawn by lot"


def letter(text: str) -> str | None:
    """Return the letter A to H that is read in an answer, None where the evaluator would draw one by lot.

    Raises:
        ValueError: the answer ends in "The correct option is ", where the evaluator crashes.
    """
    if len(text) == 1 and text in LETTERS:
        return text
    for name in LETTERS:  # the first in the alphabet, wherever it stands
        if f"{name}." in text:
            return name
    if OPTION_SENTENCE in text:
        rest = text.rpartition(OPTION_SENTENCE)[2]
        if not rest:
            raise ValueError(f"it ends in {OPTION_SENTENCE!r}, where the published evaluator crashes")
        return rest[0] if rest[0] in LETTERS else None
    if ANSWER_MARK in text:
        rest = text.rpartition(ANSWER_MARK)[2]
        return next((name for name in LETTERS if name in rest), None)
    return None


def labels(text: str, bench: BenchSet) -> list[str]:
    """Return the labels that stand anywhere in the text as a run of letters, "NORM" in "ABNORMAL" too."""
    if bench.name != "code15-test":
        return [name for name in bench.labels if name in text]
    text = text.rpartition(ANSWER_MARK)[2]
    overall = ["ABNORMAL"] if "ABNORMAL" in text else ["NORM"] if "NORM" in text else []
    return overall + [name for name in bench.labels[2:] if name in text]


def true_labels(text: str, bench: BenchSet) -> list[str]:
    """Return the labels of a reference. CODE-15's NORM and ABNORMAL count only as the whole text."""
    if bench.name == "code15-test":
        return [text] if text in bench.labels[:2] else [name for name in bench.labels[2:] if name in text]
    return [name for name in bench.labels if name in text]


def options(prompt: str) -> list[str]:
    """Return the options of an ECG-QA prompt, cut at commas."""
    listed = prompt.rpartition(OPTIONS_MARK)[2].replace(INSTRUCTION, "")
    return [option.strip() for option in listed.split(",")]


def chosen(text: str, offered: Sequence[str]) -> list[str]:
    """Return the options that stand in the answer put into lower case; one with a capital never does."""
    return [option for option in offered if option in text.lower()]


def read(
    answers: Sequence[Answer], bench: BenchSet, references: Mapping[str, Any], draw: random.Random
) -> tuple[list[Any], list[Any], Counter[str]]:
    """Read all answers of a set in the order of the file.

    Args:
        answers: the model's.
        bench: the set; not a judged one.
        references: conversations by id.
        draw: gives the letters that are drawn by lot; the evaluator seeds its own with 42.

    Returns:
        What was said and what is true, one entry an answer: a letter, a list of labels, or a set of
        options; and the counted peculiarities.

    Raises:
        UserError: an answer on which the evaluator crashes.
    """
    said: list[Any] = []
    true: list[Any] = []
    odd: Counter[str] = Counter()
    seen: set[str] = set()
    offered: list[str] | None = None
    for answer in answers:
        if answer.key not in references:
            raise UserError(
                f"{answer.where}: no reference has the id {answer.key!r}. Name the answers of {bench.name}."
            )
        odd[TWICE] += answer.key in seen
        seen.add(answer.key)
        gold = references[answer.key][1]["value"]
        if bench.kind not in (CHOICE, MULTILABEL):
            offered = _offered(answer, offered, odd)
        if answer.text is not None:
            said.append(_said(answer, answer.text, bench, offered, draw, odd))
        elif said:
            odd[NO_TEXT] += 1
            said.append(said[-1])
        else:
            raise UserError(
                f"{answer.where}: the first answer has no text, where the published evaluator crashes. "
                "Write the answer, or score with --protocol strict."
            )
        true.append(_true(gold, bench))
    return said, true, +odd


def _offered(answer: Answer, before: list[str] | None, odd: Counter[str]) -> list[str]:
    if answer.prompt is not None:
        return options(answer.prompt)
    if before is None:
        raise UserError(
            f"{answer.where}: the first answer has no prompt, so the published evaluator knows no options. "
            "Write the prompt, or score with --protocol strict."
        )
    odd[NO_PROMPT] += 1
    return before


def _said(
    answer: Answer,
    text: str,
    bench: BenchSet,
    offered: list[str] | None,
    draw: random.Random,
    odd: Counter[str],
) -> Any:
    if bench.kind == MULTILABEL:
        return labels(text, bench)
    if bench.kind != CHOICE:
        return set(chosen(text, offered or []))
    try:
        found = letter(text)
    except ValueError as error:
        raise UserError(
            f"{answer.where}: {error}. Mend the answer, or score with --protocol strict."
        ) from error
    if found is None:
        odd[GUESSED] += 1
        return draw.choice(bench.letters)
    return found


def _true(gold: Any, bench: BenchSet) -> Any:
    if bench.kind == MULTILABEL:
        return true_labels(gold, bench)
    if bench.kind == CHOICE:
        return gold if bench.name == "mmmu-ecg" else gold[0]
    return set(gold)
