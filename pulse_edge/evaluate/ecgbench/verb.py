"""The verb ``eval --ecgbench``: which of the package's functions its options ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from pulse_edge.errors import UnknownNameError, UserError
from pulse_edge.evaluate.ecgbench.judge import judge_prompts
from pulse_edge.evaluate.ecgbench.score import ALL, score_all, score_ecgbench
from pulse_edge.evaluate.ecgbench.sets import PROTOCOLS, SETS, Protocol


def evaluate_answers(
    dataset: str,
    answers: Path | None,
    references: Path | None = None,
    protocol: str = "published",
    prompts: Path | None = None,
    judge: Path | None = None,
) -> dict[str, Any]:
    """Score answers to ECGBench, or write the judge's prompts.

    Args:
        dataset: one of ``sets.SETS``, or ``all``.
        answers: a model's answers; for ``all`` the folder of ``<dataset>/*.jsonl``.
        references: the set's file or a folder with it; None where the answers repeat the references.
        protocol: ``published`` or ``strict``.
        prompts: write the judge's prompts to this file and score nothing.
        judge: the judge's answers.

    Returns:
        See ``score_ecgbench`` and ``score_all``, or ``{"prompts": number, "judge_prompts": path}``.

    Raises:
        UserError: options that do not go together, or a file that cannot be used.
    """
    if dataset not in (ALL, *SETS):
        raise UnknownNameError("set of ECGBench", dataset, (ALL, *SETS))
    if protocol not in PROTOCOLS:
        raise UnknownNameError("protocol", protocol, PROTOCOLS)
    if answers is None:
        raise UserError(f"No answers to {dataset} are named. Name the model's with --answers FILE.")
    if dataset == ALL and (prompts is not None or judge is not None):
        raise UserError("Every judged set has its own prompts and its own judge's file. Name one set.")
    if prompts is not None and judge is not None:
        raise UserError("--judge-prompts writes what a judge is asked, --judge reads its reply. Name one.")
    if prompts is not None:
        return {
            "prompts": judge_prompts(answers, dataset, prompts, references),
            "judge_prompts": str(prompts),
        }
    chosen = cast(Protocol, protocol)
    if dataset == ALL:
        return score_all(answers, chosen, references)
    return score_ecgbench(answers, dataset, chosen, references, judge)
