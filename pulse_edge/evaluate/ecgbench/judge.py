"""The two judged sets: the prompts for a language model that judges, and the score of what it said.

Nothing here reaches a network: prompts go to a file, the judge's answers come from a file. The published
evaluator asks GPT-4o at temperature 0 for a JSON object, with wording of its own; aspects, scale and
arithmetic are the same here, the wording is ours (docs/ecgbench.md).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pulse_edge.bundle import write_atomic
from pulse_edge.errors import UserError
from pulse_edge.evaluate.ecgbench.files import Answer, read_answers, read_references, read_rows
from pulse_edge.evaluate.ecgbench.sets import SETS, BenchSet
from pulse_edge.evaluate.ecgbench.strict import NO_TEXT, UNANSWERED, index

UNJUDGED: Final = "answer without the judge's word: left out"
LEFT_OUT: Final = "question without an answer: left out"
_NO_OBJECT: Final = "no JSON object in the judge's response. Ask the judge again."
_ALIASES: Final = {"form": "waveform"}

_WANTED: Final = {
    "Diagnosis": "every diagnosis of the reference is named, and none is wrong or invented",
    "Waveform": "P waves, QRS complexes, ST segments, T waves and intervals are those of the reference",
    "Rhythm": "the rhythm is the reference's, and is stated clearly",
    "Accuracy": "waves, intervals, terms and diagnoses agree with the reference",
    "Completeness": "everything of weight in the reference is there",
    "Instruction Adherence": "the answer does what the question asks for, be it right or wrong",
}


def judge_prompts(answers: Path, dataset: str, output: Path, references: Path | None = None) -> int:
    """Write the prompts for the judge of a set, one JSON object a line.

    Each line holds ``id``, ``prompt``, and beside it ``question``, ``reference`` and ``answer``, so that
    another wording can be put around them. Ask the judge at temperature 0 for JSON, and write its answers
    as lines of ``{"id": ..., "response": ...}``.

    Args:
        answers: the model's answers.
        dataset: ``ptb-test-report`` or ``arena``.
        output: file to write, whole or not at all; it must not exist.
        references: the set's file, or a folder with it; None where the answers repeat the references.

    Returns:
        The number of prompts.

    Raises:
        UserError: the set is not judged, the output exists, or a file cannot be used.
    """
    bench = SETS.get(dataset)
    if bench is None or not bench.aspects:
        judged = " and ".join(name for name, item in SETS.items() if item.aspects)
        raise UserError(f"{dataset} is scored without a judge. The judged sets are {judged}.")
    if not Path(output).parent.is_dir():
        raise UserError(f"There is no folder {Path(output).parent}. Make it, or choose another file.")
    if Path(output).exists():  # it may be the answers, or prompts that a judge has begun to answer
        raise UserError(f"{output} exists already. Choose another file for the prompts, or remove it.")
    rows = read_answers(Path(answers))
    items = questions(rows, bench, read_references(references, dataset, rows))
    lines = [json.dumps({**item, "prompt": _prompt(item, bench)}) for item in items]
    write_atomic(Path(output), ("\n".join(lines) + "\n").encode())
    return len(lines)


def questions(
    answers: Sequence[Answer], bench: BenchSet, references: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Return what the judge compares: ``id``, ``question``, ``reference`` and ``answer`` of every turn.

    Raises:
        UserError: an answer to no reference, two to one, or a conversation of another length.
    """
    items = []
    for key, answer in index(answers, references, bench).items():
        gold = references[key]
        if bench.name != "arena":
            turn = {"question": gold[0]["value"], "reference": gold[-1]["value"], "answer": answer.text or ""}
            items.append({"id": key, **turn})
            continue
        if len(answer.turns) != len(gold):
            raise UserError(
                f"{answer.where}: {len(answer.turns)} turns in predict_convs for {len(gold)} questions. "
                "Answer every turn."
            )
        for number, ((_, said), true) in enumerate(zip(answer.turns, gold, strict=True), 1):
            turn = {"question": true["question"], "reference": true["answer"], "answer": said}
            items.append({"id": f"{key}#{number}", **turn})
    return items


def _prompt(item: Mapping[str, str], bench: BenchSet) -> str:
    aspects = "\n".join(
        f"- {name}: 10 if {_WANTED[name]}; 5 if that holds in part; 0 if it does not."
        for name in bench.aspects
    )
    form = ", ".join(f'"{name}": {{"Score": 0-10, "Explanation": "..."}}' for name in bench.aspects)
    return (
        "You are a cardiologist who marks what a model wrote about an electrocardiogram. Mark it against the "
        "reference alone. Neither length nor style counts.\n"
        f"{aspects}\n\n"
        f"[Question]\n{item['question'].replace('<image>', '').strip()}\n\n"
        f"[Reference]\n{item['reference']}\n\n"
        f"[Answer to mark]\n{item['answer']}\n\n"
        f"Reply with one JSON object and nothing else: {{{form}}}"
    )


def judged_scores(
    answers: Sequence[Answer], bench: BenchSet, references: Mapping[str, Any], judge: Path, strict: bool
) -> tuple[dict[str, Any], Counter[str]]:
    """Score a judged set by the judge's file.

    The score of a report or turn is ten times the mean of its aspects; that of the set is the mean over
    them. Strict wants the set's three aspects from every reply, a reply to every answer, and counts a
    question without an answer as 0; published takes what is there.

    Returns:
        ``n`` (reports or turns), ``score`` and ``aspects`` (means), each from 0 to 100; counted flaws.

    Raises:
        UserError: a reply that cannot be used, to nothing that was asked, or missing (strict).
    """
    items = questions(answers, bench, references)
    replies = _replies(judge, {item["id"] for item in items}, bench, strict)
    unjudged = [item["id"] for item in items if item["id"] not in replies]
    if strict and unjudged:
        raise UserError(
            f"{judge} lacks {len(unjudged)} of {len(items)} answers, first that of {unjudged[0]!r}. "
            "Let the judge mark them, or score with --protocol published."
        )
    left = [key for key in references if key not in {answer.key for answer in answers}]
    odd = Counter({UNJUDGED: len(unjudged), UNANSWERED if strict else LEFT_OUT: len(left)})
    odd[NO_TEXT] += sum(answer.text is None and not answer.turns for answer in answers)
    marks = list(replies.values())
    if strict:
        silent = sum(len(references[key]) if bench.name == "arena" else 1 for key in left)
        marks += [dict.fromkeys(bench.aspects, 0.0)] * silent
    names = sorted({name for mark in marks for name in mark})
    means = {name: [mark[name] for mark in marks if name in mark] for name in names}
    each = [sum(mark.values()) / len(mark) * 10 for mark in marks]
    result = {
        "n": len(marks),
        "score": sum(each) / len(each),
        "aspects": {name: sum(values) / len(values) * 10 for name, values in means.items()},
    }
    return result, +odd


def _replies(judge: Path, asked: set[str], bench: BenchSet, strict: bool) -> dict[str, dict[str, float]]:
    replies: dict[str, dict[str, float]] = {}
    for number, row in read_rows(judge):
        where = f"{judge}, line {number}"
        key = str(row.get("id"))
        if key not in asked:
            raise UserError(
                f"{where}: {key!r} is the id of no prompt. Name the judge's answers to this file."
            )
        if key in replies:
            raise UserError(f"{where}: a second answer for {key!r}. Keep one of them.")
        replies[key] = _marks(row.get("response"), bench, where, strict)
    return replies


def _marks(response: Any, bench: BenchSet, where: str, strict: bool) -> dict[str, float]:
    """Return the score of each aspect, by the set's names where they are meant."""
    if isinstance(response, str):  # the object may stand between other words, or in a code fence
        start, end = response.find("{"), response.rfind("}")
        try:
            response = json.loads(response[start : end + 1])
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{where}: no JSON object in the judge's response. Ask the judge again."
            ) from error
    if not isinstance(response, dict) or not response:
        raise UserError(f"{where}: no JSON object in the judge's response. Ask the judge again.")
    known = {name.lower(): name for name in bench.aspects}
    marks: dict[str, float] = {}
    name: str
    for name, value in response.items():
        score: Any = value.get("Score", value.get("score")) if isinstance(value, dict) else value
        fits = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
        if not fits or not 0 <= score <= 10:
            raise UserError(f"{where}: the score of {name!r} is no number from 0 to 10. Ask the judge again.")
        name = name.encode(errors="replace").decode()  # a lone surrogate cannot be printed
        plain = " ".join(name.replace("_", " ").lower().split())
        marks[known.get(_ALIASES.get(plain, plain), name)] = float(score)
    if strict and set(marks) != set(bench.aspects):
        raise UserError(
            f"{where}: the judge scored {', '.join(marks)} in place of {', '.join(bench.aspects)}. "
            "Ask the judge again, or score with --protocol published."
        )
    return marks
