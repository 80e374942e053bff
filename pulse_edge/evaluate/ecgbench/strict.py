"""What an answer says, read with care: whole words, no guesses, contradictions count as no answer."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from pulse_edge.errors import UserError
from pulse_edge.evaluate.ecgbench.files import Answer
from pulse_edge.evaluate.ecgbench.published import INSTRUCTION, OPTIONS_MARK
from pulse_edge.evaluate.ecgbench.sets import CHOICE, MULTILABEL, BenchSet

NO_TEXT: Final = "answer without text: counted as no answer"
UNANSWERED: Final = "question without an answer: counted as no answer"
UNCLEAR: Final = "no single option can be read: counted as wrong"
BARE: Final = "reference without a label of the set"

# A word of its own: "MI" not in "MILD", "AF" not in "AFL", "ST" not in "ST-T" or "post-ST".
_BEFORE, _AFTER = r"(?<![^\W_])(?<![^\W_]-)", r"(?![^\W_])(?!-[^\W_])"
# Capitals spelling another thing than the label: CODE-15's ST is sinus tachycardia.
_NOT_BEFORE: Final = {"ST": r"(?![ -](?:[Ss]eg|[Dd]ep|[Ee]lev|[Cc]hang|[Aa]bnorm|[Dd]ev|T\b))"}
_SPELLINGS: Final = {"NORM": "NORM(?:AL)?"}

_NEGATION = re.compile(
    r"\b(?:no(?!\s*[,:])|not(?! only)|without|nor|neither|den(?:y|ies)|negative for|absence of"
    r"|rules? out|ruled out)\b",
    re.IGNORECASE,
)
_DENIED = re.compile(r"[ \t]*(?::|=|-|\bis\b)[ \t]*(?:no|not|absent|negative|false)\b", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[.;:!?\n]|\b(?:but|however|although|instead)\b", re.IGNORECASE)
_MARK = re.compile(r"\banswer\s*(?:is\b)?\s*:", re.IGNORECASE)

_WHOLE = re.compile(r"[\s(\[{]*([A-Za-z])[\s)\]}.:,;!]*")
_NOT_LETTER = re.compile(r"\b(?i:not|isn't|rather than|instead of|over)\s+\(?(?i:option\s+)?[A-H]\b\)?\.?")
_LETTER = r"(?:([A-H])(?![^\W_]|'[a-z]|-[^\W_])|([a-h])(?=\s*(?:[).:'\]}]|$)))"
_STATED = re.compile(
    r"\b(?i:answer|option|choice)\s*(?:(?i:is|are|would be|should be|must be)\b|[:=])"
    r"[\s:'(\[{]*(?i:option\s+)?\(?" + _LETTER
)
_NAMED = re.compile(r"\b(?i:answer|option|choice)\s+\(?" + _LETTER)
_MARKED = re.compile(r"\(([A-H])\)|(?<![\w.])([A-H])[.):](?=\s|$)")
# "A" before a word is the article, unless the word goes on about the choice.
_ARTICLE = re.compile(r"\s+(?!(?:because|since|as|due|which|or|and)\b)[a-z]")
_ANOTHER = re.compile(r"[).\]]*\s*(?:or|and|/|,|&)\s*\(?([A-H])(?![^\W_])")


def tail(text: str) -> str:
    """Return what stands behind the last "Answer:", or the whole text."""
    marks = list(_MARK.finditer(text))
    return text[marks[-1].end() :] if marks else text


def labels(text: str, names: Sequence[str]) -> list[str]:
    """Return the labels that the answer asserts: words of their own, in their own case, not negated."""
    text = tail(unicodedata.normalize("NFKC", text))
    return [name for name in names if any(_asserted(text, m) for m in _label(name).finditer(text))]


def _label(name: str) -> re.Pattern[str]:
    spelled = _SPELLINGS.get(name, re.escape(name))
    return re.compile(f"{_BEFORE}{spelled}{_AFTER}{_NOT_BEFORE.get(name, '')}")


def _asserted(text: str, match: re.Match[str]) -> bool:
    before = _CLAUSE_END.split(text[: match.start()])[-1]
    return not _NEGATION.search(before) and not _DENIED.match(text, match.end())


def options(question: str) -> list[str]:
    """Return the options of an ECG-QA question in lower case, without the full stop behind the last."""
    listed = question.rpartition(OPTIONS_MARK)[2].replace(INSTRUCTION, "")
    return [name for part in listed.split(",") if (name := part.strip().rstrip(".").strip().lower())]


def chosen(text: str, offered: Iterable[str]) -> set[str]:
    """Return the options that stand in the answer as words, in any case; "lead I" is not in "lead II".

    A longer option is found first and hides the shorter ones within it: "abnormal ecg", "not sure".
    """
    text = tail(unicodedata.normalize("NFKC", text)).lower()
    found = set()
    for name in sorted(set(offered), key=len, reverse=True):
        pattern = re.compile(f"{_BEFORE}{re.escape(name)}{_AFTER}")
        if pattern.search(text):
            found.add(name)
            text = pattern.sub(lambda m: " " * len(m[0]), text)
    return found


def choices(question: str, letters: str) -> dict[str, str]:
    """Return the offered texts by letter: "A. ... B. ..." as the question lists them, in lower case."""
    marks = [m for m in re.finditer(r"(?<![\w(])\(?([A-H])[.):]\s+", question) if m[1] in letters]
    best: list[re.Match[str]] = []
    for first in (k for k, m in enumerate(marks) if m[1] == "A"):
        chain: list[re.Match[str]] = []
        for mark in marks[first:]:
            if len(chain) < len(letters) and mark[1] == letters[len(chain)]:
                chain.append(mark)
        best = max(best, chain, key=len)
    if len(best) < 2:
        return {}
    ends = [*(mark.start() for mark in best[1:]), len(question)]
    return {
        mark[1]: question[mark.end() : end].strip().partition("\n")[0].strip(" .,;").lower()
        for mark, end in zip(best, ends, strict=True)
    }


def letter(text: str, question: str, letters: str) -> str | None:
    """Return the one option that an answer chooses, or None; never a guess.

    In this order: the answer is a letter; the last "answer is X", "Answer: X"; the one "option X"; the
    one letter written "(X)", "X.", "X)" or "X:"; the one option whose text is asserted.
    """
    offered = choices(question, letters) or dict.fromkeys(letters, "")
    text = unicodedata.normalize("NFKC", text).strip()
    text = _NOT_LETTER.sub(" ", re.sub('[*`"“”]', "", text))
    whole = _WHOLE.fullmatch(text)
    if whole:
        return _one([whole[1]], offered)
    stated = list(_letters(_STATED, text))
    if stated:
        name, rest = stated[-1]
        return None if (also := _ANOTHER.match(rest)) and also[1] != name else _one([name], offered)
    for pattern in (_NAMED, _MARKED):
        named = list(_letters(pattern, text))
        if named:
            return _one([name for name, _ in named], offered)
    said = chosen(text, [name for name in offered.values() if name])
    lower = tail(text).lower()
    said = {n for n in said if any(_asserted(lower, m) for m in re.finditer(re.escape(n), lower))}
    return _one([name for name, words in offered.items() if words in said], offered)


def _letters(pattern: re.Pattern[str], text: str) -> Iterator[tuple[str, str]]:
    """Give the letters that a pattern finds, each with the text behind it."""
    for match in pattern.finditer(text):
        name = next(group for group in match.groups() if group)
        if not (name == "A" and _ARTICLE.match(text, match.end())):
            yield name.upper(), text[match.end() :]


def _one(names: Iterable[str], offered: Mapping[str, str]) -> str | None:
    found = {name.upper() for name in names}
    return found.pop() if len(found) == 1 and found <= offered.keys() else None


def read(
    answers: Sequence[Answer], bench: BenchSet, references: Mapping[str, Any]
) -> tuple[list[Any], list[Any], Counter[str]]:
    """Read the answer to every reference; a question without an answer is scored as one that says nothing.

    Returns:
        What was said and what is true, one entry a reference; and the counted flaws.

    Raises:
        UserError: an answer to no reference, or two answers to one.
    """
    said: list[Any] = []
    true: list[Any] = []
    odd: Counter[str] = Counter()
    by_key = index(answers, references, bench)
    for key, conversations in references.items():
        answer = by_key.get(key)
        odd[UNANSWERED] += answer is None
        odd[NO_TEXT] += answer is not None and answer.text is None
        text = (answer.text if answer else None) or ""
        question, gold = conversations[0]["value"], conversations[1]["value"]
        if bench.kind == MULTILABEL:
            said.append(labels(text, bench.labels))
            true.append(labels(gold, bench.labels))
            odd[BARE] += not true[-1]
        elif bench.kind == CHOICE:
            said.append(letter(text, question, bench.letters))
            true.append(gold[0])
            odd[UNCLEAR] += said[-1] is None and bool(text)
        else:
            said.append(chosen(text, options(question)))
            true.append({name.strip().lower() for name in ([gold] if isinstance(gold, str) else gold)})
            odd[UNCLEAR] += not said[-1] and bool(text)
    return said, true, +odd


def index(answers: Sequence[Answer], references: Mapping[str, Any], bench: BenchSet) -> dict[str, Answer]:
    """Return the answers by id.

    Raises:
        UserError: an answer to no reference, or two answers to one.
    """
    by_key: dict[str, Answer] = {}
    for answer in answers:
        if answer.key not in references:
            raise UserError(
                f"{answer.where}: no reference has the id {answer.key!r}. Name the answers of {bench.name}."
            )
        if answer.key in by_key:
            raise UserError(
                f"{answer.where}: the question {answer.key!r} was answered before, in "
                f"{by_key[answer.key].where}. Keep one of the answers."
            )
        by_key[answer.key] = answer
    return by_key
