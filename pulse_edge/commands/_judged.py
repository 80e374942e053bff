"""How a step that makes a model smaller ends: gate, certificate, and a calibration of its own.

What `quantize`, `search`, `prune` and `distill` share.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_edge.errors import UserError

if TYPE_CHECKING:
    from pulse_edge.evaluate.gate import Budget

Tick = Callable[[str, int, int], None]
NOT_MEASURED = (
    "Name the ECGs on which the loss of accuracy is measured: --records LABELS_CSV. To do without, add "
    "--accept-loss, which is recorded."
)


def judged(
    stage: str,
    source: Path,
    records: Path | None,
    split: str | None,
    limit: int | None,
    budget: Callable[[float | None], Budget],
    remedy: str,
    accept_loss: bool,
    tick: Tick,
) -> Callable[[Path], dict[str, Any]]:
    """Return what scores a finished checkpoint beside the one that it came from, and certifies it.

    Args:
        stage: name in the card's chain.
        source: what the step began with.
        records: labels.csv that both are scored on; None with ``accept_loss`` only. Where ``source`` has a
            calibration, one for the result is fitted to their validation patients.
        split: patients of ``records``: test, validation, train, or all of them with None.
        limit: at most so many records.
        budget: what the step may cost, given the macro AUROC that it began with.
        remedy: what else could be done about a loss.
        accept_loss: keep the result whatever it costs.
        tick: called with the name of the stage, and parts done and in all.

    Raises:
        UserError: no records and no ``accept_loss``, or options that do not fit.
    """
    if records is None:
        if not accept_loss:
            raise UserError(NOT_MEASURED)
        return lambda folder: {"stage": stage, "set": None, "passed": False, "accepted": ["not measured"]}
    from pulse_edge.ecg.split import SPLITS
    from pulse_edge.errors import UnknownNameError
    from pulse_edge.evaluate.labels import read_labels

    if split is not None and split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if limit is not None and limit < 1:
        raise UserError("--limit must be at least 1.")
    table = Path(records)
    read_labels(table)  # complain about the file before hours of work

    def measure(folder: Path) -> dict[str, Any]:
        from pulse_edge.evaluate.certify import Trial, certify
        from pulse_edge.runtimes.load import load

        trial = Trial(stage, source, folder, table, split, limit, budget, accept_loss, remedy)
        row = certify(trial, lambda path: load(path, own=True), tick)
        _calibrate_anew(source, folder, table, limit, tick)
        return row

    return measure


def _calibrate_anew(source: Path, folder: Path, records: Path, limit: int | None, tick: Tick) -> None:
    """Give the result a calibration if its parent had one and the validation patients suffice for it."""
    from pulse_edge.commands._calibrate import fit_card
    from pulse_edge.model.checkpoint import read_card

    if read_card(source)["calibration"] is None:
        return
    try:
        fit_card(folder, records, limit=limit, tick=lambda done, total: tick("calibrating", done, total))
    except UserError:  # too few validation patients: the result stays without, and `told` says so
        return


def ended(source: Path, output: Path, gate: dict[str, Any], start: float) -> dict[str, Any]:
    """Return what every such verb's result holds.

    Args:
        source: what the step began with.
        output: what it made.
        gate: the row of its card.
        start: of the step, of ``time.perf_counter``.

    Returns:
        ``{"checkpoint", "bytes", "gate", "calibration", "seconds"}``; ``calibration`` is ``{"parent": whether
        there was one, "fit": the card's field of that name of the new one, or None}``.
    """
    from pulse_edge.model.checkpoint import read_card

    before, after = (read_card(folder)["calibration"] for folder in (source, output))
    return {
        "checkpoint": str(output),
        "bytes": sum(path.stat().st_size for path in output.iterdir()),
        "gate": gate,
        "calibration": {"parent": before is not None, "fit": None if after is None else after["fit"]},
        "seconds": time.perf_counter() - start,
    }


def told(result: dict[str, Any]) -> list[str]:
    """Return lines that tell of gate, certificate and calibration, for people.

    Args:
        result: of a verb: ``checkpoint``, ``gate`` and ``calibration``.
    """
    from pulse_edge.contract import REPORT

    gate, calibration = result["gate"], result["calibration"]
    lines = ["accuracy     not measured"]
    if gate["set"] is not None:
        interval = gate["loss_interval"]
        within = f" ({interval[0]:+.4f} to {interval[1]:+.4f})" if interval else ""
        before, after = gate["auroc_before"]["macro"], gate["auroc"]["macro"]
        known = gate["loss"] is not None
        change = f"{before:.4f} -> {after:.4f}, loss {gate['loss']:+.4f}" if known else "not to be told"
        lines = [
            f"accuracy     macro AUROC {change}{within}",
            f"             {gate['flip_share']:.2%} of the labels flipped",
            f"             on {gate['n']} ECGs of {gate['patients']} patients, {gate['set']}",
            f"certificate  {Path(result['checkpoint']) / REPORT}",
        ]
    if (fit := calibration["fit"]) is not None:
        lines.append(f"calibration  fitted anew to {fit['n']} ECGs of {fit['patients']} {fit['set']}")
    elif calibration["parent"]:
        lines.append(
            "calibration  none: that of the weights before does not hold for these. Fit one: "
            f"pulse-edge calibrate {result['checkpoint']} --records LABELS_CSV"
        )
    return lines
