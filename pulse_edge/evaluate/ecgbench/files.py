"""Reading ECGBench's files: references, a model's and a judge's answers. Every refusal names its line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pulse_edge.errors import UserError
from pulse_edge.evaluate.ecgbench.sets import SETS


@dataclass(frozen=True)
class Answer:
    """One line of an answers file.

    Attributes:
        where: file and line, for messages.
        key: id of the question.
        text: the model's words; None where the line holds none.
        prompt: the question as the model was asked; None where the line does not repeat it.
        turns: questions and answers of a conversation (arena).
        conversations: the reference, which the baselines' and the arena's format repeat in every line.
    """

    where: str
    key: str
    text: str | None
    prompt: str | None
    turns: tuple[tuple[str, str], ...]
    conversations: Any


def read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read a file of JSON lines, or one JSON list, of objects; ``.gz`` is unpacked.

    Returns:
        Pairs of the line's number (an entry's number for a list), from 1, and the object.

    Raises:
        UserError: missing, not UTF-8, not JSON, or a line that is no object.
    """
    path = Path(path)
    text = _text(path)
    # A line of JSON lines starts with "{": only a list starts with "[".
    if text.lstrip().startswith("["):
        try:
            entries = list(enumerate(json.loads(text), 1))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not sound JSON: {error}. Write the file again.") from error
    else:
        entries = []
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                entries.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{path}, line {number}: not JSON ({error}). A run that was cut off leaves such a line; "
                    "write it again."
                ) from error
    for number, entry in entries:
        if not isinstance(entry, dict):
            raise UserError(f"{path}, line {number}: not a JSON object. Write one object a line.")
    if not entries:
        raise UserError(f"{path} is empty. Name a file with one JSON object a line.")
    return entries


def _text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"There is no file {path}. Check the path.")
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}. Save it as UTF-8, or as gzip of it.") from error


def read_answers(path: Path) -> list[Answer]:
    """Read a model's answers, in PULSE's format or in that of its baselines.

    PULSE: ``question_id``, ``prompt``, ``text``; arena: ``question_id``, ``predict_convs``, ``golden_convs``.
    Baselines: ``id``, ``prompt`` with an inner ``prompt``, ``response``, ``conversations``.

    Raises:
        UserError: not readable, a line without an id, or with words that are no text.
    """
    answers = []
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
        key = row.get("question_id", row.get("id"))
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise UserError(f"{where}: no question_id. Write the id of the reference with every answer.")
        text = row.get("text", row.get("response"))
        if text is not None and not isinstance(text, str):
            raise UserError(f"{where}: the answer is a {type(text).__name__}, not text. Write a string.")
        prompt = row.get("prompt")
        prompt = prompt.get("prompt") if isinstance(prompt, dict) else prompt
        answers.append(
            Answer(
                where,
                str(key),
                text,
                prompt if isinstance(prompt, str) else None,
                _turns(row.get("predict_convs", ()), where),
                row.get("conversations", row.get("golden_convs")),
            )
        )
    return answers


def _turns(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    turns = []
    for turn in value if isinstance(value, list | tuple) else [value]:
        question, answer = (
            (turn.get("question"), turn.get("answer")) if isinstance(turn, Mapping) else (None, None)
        )
        if not isinstance(question, str) or not isinstance(answer, str):
            raise UserError(f"{where}: a turn lacks question or answer as text. Write both for every turn.")
        turns.append((question, answer))
    return tuple(turns)


def read_references(path: Path | None, dataset: str, answers: list[Answer]) -> dict[str, Any]:
    """Return the conversations of every question of a set, by its id.

    Args:
        path: the set's file in ECGBench's layout (a list, or JSON lines), or a folder with
            ``<dataset>.json``, ``.jsonl`` or either with ``.gz``. None takes what the answers repeat.
        dataset: key of ``SETS``.
        answers: the model's.

    Raises:
        UserError: no such file, an entry without id or conversations, an id twice, or neither a path nor
            references in the answers.
    """
    if path is None:
        bare = [answer.where for answer in answers if answer.conversations is None]
        if bare:
            raise UserError(f"{bare[0]}: no reference in this line. Name the set's file with --references.")
        entries = [
            (answer.where, answer.key, check_reference(dataset, answer.conversations, answer.where))
            for answer in answers
        ]
        return {key: conversations for _, key, conversations in entries}
    file = _reference_file(Path(path), dataset)
    references: dict[str, Any] = {}
    for number, row in read_rows(file):
        where = f"{file}, entry {number}"
        # MMMU's own number is what the published evaluator looks answers up by.
        key = row.get("No", row.get("id")) if dataset == "mmmu-ecg" else row.get("id")
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise UserError(f"{where}: no id. Name the set as it is published.")
        if str(key) in references:
            raise UserError(f"{where}: the id {key!r} is there twice. Name the set as it is published.")
        references[str(key)] = check_reference(dataset, row.get("conversations"), where)
    return references


def _reference_file(path: Path, dataset: str) -> Path:
    if not path.is_dir():
        return path
    found = [path / f"{dataset}{end}" for end in (".json", ".jsonl", ".json.gz", ".jsonl.gz")]
    for file in found:
        if file.is_file():
            return file
    raise UserError(f"There is no {found[0].name} in {path}. Name the set's file with --references.")


def check_reference(dataset: str, conversations: Any, where: str) -> Any:
    """Return a reference's conversations, or refuse what the set cannot be scored by.

    Raises:
        UserError: question or answer is missing or of another type than the set's.
    """
    if dataset == "arena":
        if not conversations or not _turns(conversations, where):
            raise UserError(f"{where}: no conversation. Name the set as it is published.")
        return conversations
    try:
        question, gold = conversations[0]["value"], conversations[-1 if _report(dataset) else 1]["value"]
    except (TypeError, LookupError) as error:
        raise UserError(f"{where}: no question and answer. Name the set as it is published.") from error
    several = isinstance(gold, list) and all(isinstance(item, str) for item in gold)
    sound = isinstance(gold, str) or (dataset == "ecgqa-test" and several)
    letter = SETS[dataset].letters
    if not isinstance(question, str) or not sound or (letter and gold[:1] not in letter) or gold == "":
        raise UserError(f"{where}: the answer {gold!r} is not of this set. Name the set as it is published.")
    return conversations


def _report(dataset: str) -> bool:
    return dataset == "ptb-test-report"
