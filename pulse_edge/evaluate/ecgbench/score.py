"""Score a model's answers to one set of ECGBench, or to all, as published or strictly."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pulse_edge.errors import UnknownNameError, UserError
from pulse_edge.evaluate.ecgbench import published, strict
from pulse_edge.evaluate.ecgbench.files import Answer, read_answers, read_references
from pulse_edge.evaluate.ecgbench.judge import judged_scores
from pulse_edge.evaluate.ecgbench.metrics import published_scores, strict_scores
from pulse_edge.evaluate.ecgbench.sets import (
    JUDGED,
    MULTILABEL,
    PROTOCOLS,
    SEED,
    SETS,
    BenchSet,
    Protocol,
)

LEFT_OUT: Final = "question without an answer: left out"
ALL: Final = "all"


def score_ecgbench(
    answers: Path,
    dataset: str,
    protocol: Protocol = "published",
    references: Path | None = None,
    judge: Path | None = None,
    draw: random.Random | None = None,
) -> dict[str, Any]:
    """Score a model's answers to one set of ECGBench.

    Args:
        answers: JSON lines in PULSE's format or its baselines', plain or ``.gz``.
        dataset: one of ``sets.SETS``.
        protocol: ``published`` gives PULSE's own figures, flaws included; ``strict`` reads with care.
        references: the set's file, or a folder with ``<dataset>.json``; None where the answers repeat the
            references (the baselines' format and the arena's do).
        judge: the judge's answers to ``judge_prompts``; for the judged sets only.
        draw: gives the published evaluator's guesses; by default seeded with 42 for every set.

    Returns:
        ``dataset``, ``protocol``, ``kind``, ``n`` (answers, strict: questions; judged: reports or turns),
        ``problems`` (counted by what was done about them) and the figures, as fractions:

        - multilabel: ``f1``, ``auc`` (published) or ``balanced_accuracy`` (strict), ``hl``, ``classes``,
          ``per_class``, and in strict ``undefined``. None stands for a figure that is not defined.
        - choice and options: ``accuracy``.
        - judged: ``score`` and ``aspects``, from 0 to 100.

    Raises:
        UnknownNameError: no such set or protocol.
        UserError: a file that cannot be used, with its line; or answers on which the published evaluator
            gives no score.
    """
    bench = _bench(dataset, protocol)
    if bench.kind == JUDGED and judge is None:
        raise UserError(
            f"{dataset} is scored by a judge. Write its prompts with --judge-prompts FILE, let a judge "
            "answer, and name its answers with --judge FILE."
        )
    if bench.kind != JUDGED and judge is not None:
        raise UserError(f"{dataset} is scored without a judge. Leave --judge out.")
    rows = read_answers(Path(answers))
    known = read_references(references, dataset, rows)
    if judge is not None:
        figures, odd = judged_scores(rows, bench, known, Path(judge), protocol == "strict")
    elif protocol == "published":
        figures, odd = _published(rows, bench, known, draw or random.Random(SEED), answers)
    else:
        figures, odd = _strict(rows, bench, known)
    return {
        "dataset": dataset,
        "protocol": protocol,
        "kind": bench.kind,
        **figures,
        "problems": dict(odd),
    }


def score_all(
    folder: Path, protocol: Protocol = "published", references: Path | None = None
) -> dict[str, Any]:
    """Score every set whose answers lie in ``folder/<dataset>/``, as the published script does in one run.

    One random generator serves all sets in the script's order, so a published guess depends on the sets
    before it. The judged sets need their judge's file and are scored one by one.

    Returns:
        ``protocol``, ``sets`` (by name, see ``score_ecgbench``), ``not_scored`` (by name, the reason).

    Raises:
        UserError: no such folder, more than one file of answers to a set, or nothing to score.
    """
    if protocol not in PROTOCOLS:
        raise UnknownNameError("protocol", protocol, PROTOCOLS)
    if not Path(folder).is_dir():
        raise UserError(f"{folder} is no folder. Name the folder that holds one folder of answers a set.")
    draw = random.Random(SEED)
    scored: dict[str, Any] = {}
    not_scored: dict[str, str] = {}
    for name, bench in SETS.items():
        files = sorted([*(Path(folder) / name).glob("*.jsonl"), *(Path(folder) / name).glob("*.jsonl.gz")])
        if len(files) > 1:
            raise UserError(f"{Path(folder) / name} holds {len(files)} files of answers. Leave one there.")
        if not files:
            not_scored[name] = "no answers"
        elif bench.kind == JUDGED:
            not_scored[name] = "needs its judge's file: score it alone"
        else:
            scored[name] = score_ecgbench(files[0], name, protocol, references, draw=draw)
    if not scored:
        raise UserError(f"{folder} holds no answers to score. It needs <dataset>/*.jsonl, as PULSE writes.")
    return {"protocol": protocol, "sets": scored, "not_scored": not_scored}


def _bench(dataset: str, protocol: str) -> BenchSet:
    if dataset not in SETS:
        raise UnknownNameError("set of ECGBench", dataset, SETS)
    if protocol not in PROTOCOLS:
        raise UnknownNameError("protocol", protocol, PROTOCOLS)
    return SETS[dataset]


def _published(
    rows: Sequence[Answer], bench: BenchSet, known: Mapping[str, Any], draw: random.Random, path: Path
) -> tuple[dict[str, Any], Counter[str]]:
    if bench.rows and len(rows) != bench.rows:
        raise UserError(
            f"{path} holds {len(rows)} answers; the published evaluator scores {bench.name} with exactly "
            f"{bench.rows}. Complete them, or score with --protocol strict."
        )
    said, true, odd = published.read(rows, bench, known, draw)
    odd[LEFT_OUT] += len(known) - len({answer.key for answer in rows})
    if bench.kind == MULTILABEL:
        return {"n": len(said), **published_scores(said, true)}, +odd
    return {"n": len(said), "accuracy": _accuracy(said, true)}, +odd


def _strict(
    rows: Sequence[Answer], bench: BenchSet, known: Mapping[str, Any]
) -> tuple[dict[str, Any], Counter[str]]:
    said, true, odd = strict.read(rows, bench, known)
    if bench.kind == MULTILABEL:
        return {"n": len(said), **strict_scores(said, true, bench.labels)}, odd
    return {"n": len(said), "accuracy": _accuracy(said, true)}, odd


def _accuracy(said: Sequence[Any], true: Sequence[Any]) -> float:
    return sum(bool(a == b) for a, b in zip(said, true, strict=True)) / len(true)
