"""`distill`: a small student learns from a checkpoint, and how much of it is kept is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pulse_edge.errors import UserError

KEPT = 0.98  # share of the macro AUROC above chance
FLIPS = 0.1  # of the labels


def distill(
    checkpoint: str = "pulse-nano",
    output: Path | None = None,
    recipe: str = "nano-third",
    data: Path | None = None,
    lessons: Path | None = None,
    pages: int | None = None,
    steps: int | None = None,
    alone: bool = False,
    records: Path | None = None,
    split: str | None = "test",
    limit: int | None = None,
    accept_loss: bool = False,
    tick: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Teach a student what a checkpoint knows, and pass the accuracy gate.

    Args:
        checkpoint: the teacher: folder or shipped name.
        output: folder of the student; ``./<recipe>`` by default.
        recipe: a YAML file, or a name in compress/recipes/.
        data: labels.csv whose training patients' pages are the lessons.
        lessons: folder where lessons are kept for further students of this teacher.
        pages: lessons, in place of the recipe's.
        steps: of the optimiser, in place of the recipe's.
        alone: teach with the answers alone, without the teacher: the control of an experiment.
        records: labels.csv that both are scored on.
        split: patients of ``records``: test, validation, train, or all of them with None.
        limit: at most so many records.
        accept_loss: keep the student if it breaks its budget, or is not measured; both are recorded.
        tick: called with the name of the stage, and parts done and in all.

    Returns:
        That of ``_judged.ended`` and ``{"parameters", "distillation"}``.

    Raises:
        UserError: options that cannot be used, no data, or no records and no ``accept_loss``.
        BudgetError: the accuracy gate was not passed; nothing was kept.
    """
    from pulse_edge.commands._judged import ended, judged
    from pulse_edge.compress import distill_checkpoint
    from pulse_edge.evaluate.gate import keeping
    from pulse_edge.model.checkpoint import resolve_model

    source = resolve_model(checkpoint)
    if data is None:
        raise UserError("Name the ECGs that are learnt from: --data LABELS_CSV.")
    output = Path(output) if output is not None else Path(Path(recipe).stem)
    start = time.perf_counter()
    remedy = "Teach for longer, or a larger student"
    gate = judged("distilled", source, records, split, limit, keeping(KEPT, FLIPS), remedy, accept_loss, tick)
    result = distill_checkpoint(source, output, recipe, Path(data), lessons, pages, steps, alone, gate, tick)
    return {
        **ended(source, output, result["metrics"][-1], start),
        "parameters": result["parameters"],
        "distillation": result["distillation"],
    }
