"""The accuracy gate of a step that makes a model smaller: what `prune` and `distill` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pulse_edge.errors import UserError

Tick = Callable[[str, int, int], None]


def judged(
    stage: str,
    source: Path,
    records: Path | None,
    split: str | None,
    limit: int | None,
    kept: float,
    flips: float,
    remedy: str,
    accept_loss: bool,
    tick: Tick,
) -> Callable[[Path], dict[str, Any]]:
    """Return what scores a finished checkpoint beside the one that it came from.

    Args:
        stage: name in the card's chain.
        source: what the step began with.
        records: labels.csv that both are scored on; None with ``accept_loss`` only.
        split: patients of ``records``: test, validation, train, or all of them with None.
        limit: at most so many records.
        kept: share of the macro AUROC above chance that must be kept.
        flips: share of labels that may change sides.
        remedy: what else could be done about a loss.
        accept_loss: keep the result whatever it costs.
        tick: called with the name of the stage, and parts done and in all.

    Raises:
        UserError: no records and no ``accept_loss``, or options that do not fit.
    """
    if records is None:
        if not accept_loss:
            raise UserError(
                "Name the ECGs on which the loss of accuracy is measured: --records LABELS_CSV. To do "
                "without, add --accept-loss, which is recorded."
            )
        return lambda folder: {"stage": stage, "set": None, "passed": False, "accepted": ["not measured"]}
    from pulse_edge.ecg.split import SPLITS
    from pulse_edge.errors import UnknownNameError
    from pulse_edge.evaluate.labels import read_labels

    if split is not None and split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if limit is not None and limit < 1:
        raise UserError("--limit must be at least 1.")
    read_labels(records)  # complain about the file before hours of work

    def measure(folder: Path) -> dict[str, Any]:
        from pulse_edge.evaluate.gate import above_chance, compare, judge
        from pulse_edge.evaluate.score import Scored, score_records
        from pulse_edge.runtimes.load import load

        def score(path: Path, what: str) -> Scored:
            def show(done: int, total: int) -> None:
                tick(what, done, total)

            return score_records(load(path), Path(records), split, limit, None, show)

        found = compare(score(source, "scoring before"), score(folder, "scoring after"))
        budget = above_chance(found["auroc_before"]["macro"], kept, flips)
        side = "all" if split is None else split
        row = {"stage": stage, "set": f"{side} patients of {Path(records).name}"}
        return {**row, **judge(found, budget, accept_loss, remedy)}

    return measure


def show_gate(gate: dict[str, Any]) -> list[str]:
    """Return lines that tell of a gate, for people."""
    if gate["set"] is None:
        return ["accuracy     not measured"]
    interval = gate["loss_interval"]
    within = f" ({interval[0]:+.4f} to {interval[1]:+.4f})" if interval else ""
    before, after = gate["auroc_before"]["macro"], gate["auroc"]["macro"]
    change = (
        "not to be told" if gate["loss"] is None else f"{before:.4f} -> {after:.4f}, loss {gate['loss']:+.4f}"
    )
    return [
        f"accuracy     macro AUROC {change}{within}",
        f"             {gate['flip_share']:.2%} of the labels flipped",
        f"             on {gate['n']} ECGs of {gate['patients']} patients, {gate['set']}",
    ]
