"""`prune`: a checkpoint loses tokens, layers or widths, and what that costs is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pulse_edge.errors import UserError

KEPT = 0.99  # share of the macro AUROC above chance
FLIPS = 0.05  # of the labels


def prune(
    checkpoint: str = "pulse-nano",
    output: Path | None = None,
    tokens: int | None = None,
    keep_by: str = "uniform",
    layers: int | None = None,
    mlp: int | None = None,
    kv_heads: int | None = None,
    tower: float | None = None,
    by: str = "influence",
    calibration: str | None = None,
    calibration_size: int | None = None,
    seed: int | None = None,
    heal: Path | None = None,
    heal_pages: int = 512,
    heal_steps: int = 200,
    records: Path | None = None,
    split: str | None = "test",
    limit: int | None = None,
    accept_loss: bool = False,
    tick: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Make a checkpoint smaller, heal it, and pass the accuracy gate.

    Args:
        checkpoint: folder or shipped name.
        output: folder of the new checkpoint; ``./<checkpoint>-pruned`` by default.
        tokens: visual tokens kept of a page, a multiple of five.
        keep_by: which: ``uniform`` (at even distances) or ``ink`` (those that show trace).
        layers: decoder layers that stay.
        mlp: neurons that stay in each of them.
        kv_heads: groups of heads that stay in each of them.
        tower: share of the width inside the vision tower's blocks that stays.
        by: what layers are judged by: ``influence`` or ``perplexity``.
        calibration: labels.csv, YAML file or registered name of the set that decides what goes; its training
            patients are used.
        calibration_size: pages of it.
        seed: of it, and of healing.
        heal: labels.csv whose training patients' pages the pruned model learns its parent's answers on.
        heal_pages: pages that are made for it.
        heal_steps: of sixteen pages each.
        records: labels.csv that both models are scored on.
        split: patients of ``records``: test, validation, train, or all of them with None.
        limit: at most so many records.
        accept_loss: keep the result if it breaks its budget, or is not measured; both are recorded.
        tick: called with the name of the stage, and parts done and in all.

    Returns:
        That of ``_judged.ended`` and ``{"parameters", "prefill", "pruning"}``.

    Raises:
        UserError: options that cannot be used, or no records and no ``accept_loss``.
        BudgetError: the accuracy gate was not passed; nothing was kept.
    """
    from pulse_edge.commands._judged import ended, judged
    from pulse_edge.compress import prune_checkpoint
    from pulse_edge.evaluate.gate import keeping
    from pulse_edge.model.checkpoint import resolve_model

    source = resolve_model(checkpoint)
    output = Path(output) if output is not None else Path(f"{source.resolve().name}-pruned")
    cut = {
        "tokens": tokens, "keep_by": keep_by, "layers": layers, "mlp": mlp, "kv_heads": kv_heads,
        "tower": tower, "by": by,
    }  # fmt: skip
    if all(cut[name] is None for name in ("tokens", "layers", "mlp", "kv_heads", "tower")):
        raise UserError("Say what goes: --tokens, --layers, --mlp, --kv-heads or --tower.")
    start = time.perf_counter()
    remedy = "Prune less, or heal for longer"
    gate = judged("pruned", source, records, split, limit, keeping(KEPT, FLIPS), remedy, accept_loss, tick)
    healing = {"lessons": heal, "pages": heal_pages, "steps": heal_steps}
    result = prune_checkpoint(source, output, cut, calibration, calibration_size, seed, healing, gate, tick)
    return {
        **ended(source, output, result["metrics"][-1], start),
        "parameters": result["parameters"],
        "prefill": [_prefill(folder) for folder in (source, output)],
        "pruning": result["pruning"],
    }


def _prefill(checkpoint: Path) -> dict[str, float]:
    """What reading a page and a question takes: visual tokens, and operations of the decoder."""
    from pulse_edge.fit import Setup
    from pulse_edge.roofline import prompt_flops
    from pulse_edge.shape import read_shape

    shape, setup = read_shape(checkpoint), Setup()
    return {"visual_tokens": setup.visual(shape), "flops": prompt_flops(shape, setup.prompt(shape))}
