"""`search`: a form for every layer, the cheapest mixture that keeps the accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pulse_edge.errors import UserError

CHOICES: Final = "4,8,16"


def search(
    checkpoint: str = "pulse-nano",
    plan: Path | None = None,
    output: Path | None = None,
    records: Path | None = None,
    limit: int | None = None,
    budget: float = 0.002,
    flips: float = 0.01,
    choices: str = CHOICES,
    group: int | None = None,
    device: str | None = None,
    method: str = "clip",
    calibration: str | None = None,
    calibration_size: int | None = None,
    seed: int | None = None,
    accept_loss: bool = False,
    tick: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Search the mixed precision of a checkpoint's decoder.

    Args:
        checkpoint: folder or shipped name; it is held in memory as float32.
        plan: file to write, for `quantize --plan`; ``./<checkpoint>-plan.json`` by default. The front is
            drawn beside it, as PNG.
        output: also write the quantised checkpoint there, through the gate on the test patients.
        records: labels.csv; its validation patients say how much a layer hurts.
        limit: at most so many of their records, and of the test patients'.
        budget: macro AUROC that the mixture may lose.
        flips: share of labels that it may flip.
        choices: bits that a layer may take, of 4, 8 and 16.
        group: of 4 bits, as for `quantize`.
        device: profile in devices/, whose predicted time of a token is made least; size without it.
        method: of rounding: rtn, clip, awq or gptq.
        calibration: labels.csv, YAML file or registered name of the set to calibrate on.
        calibration_size: pages of it.
        seed: of it.
        accept_loss: keep ``output`` if it breaks the budget; it is recorded.
        tick: called with the name of the stage, and parts done and in all.

    Returns:
        See ``compress.search.search``; with ``picture``, and with ``quantized``, the result of `quantize`.

    Raises:
        UserError: options that cannot be used.
        BudgetError: no mixture is within the budget, or the gate was not passed.
    """
    from pulse_edge.bundle import disk_errors
    from pulse_edge.commands._judged import ended, judged
    from pulse_edge.commands._quantize import usual_group
    from pulse_edge.compress import quantize_checkpoint, read_plan, search_plan
    from pulse_edge.evaluate.gate import REMEDY, Budget
    from pulse_edge.model.checkpoint import resolve_model

    source, start = resolve_model(checkpoint), time.perf_counter()
    if records is None:
        raise UserError("Name the ECGs on which every layer is measured: --records LABELS_CSV.")
    plan = Path(plan) if plan is not None else Path(f"{source.resolve().name}-plan.json")
    _check(plan, output, Path(records), limit, budget, flips)
    bits = _bits(choices)
    chosen_group = group if group is not None else usual_group(source)
    allowed = Budget(budget, flips)
    found = search_plan(
        source, plan, bits, chosen_group, device, method, calibration, calibration_size, seed, Path(records),
        limit, allowed, tick,
    )  # fmt: skip
    if output is None:
        return found
    forms, _ = read_plan(plan)
    least = min((form.bits for form in forms.values() if form is not None), default=8)
    gate = judged(
        f"int{least}", source, records, "test", limit, lambda auroc: allowed, REMEDY, accept_loss, tick
    )
    with disk_errors(Path(output).parent):
        made = quantize_checkpoint(
            source, Path(output), least, chosen_group if least == 4 else None, True, method, calibration,
            calibration_size, seed, False, gate, tick, forms,
        )  # fmt: skip
    done = ended(source, Path(output), made["metrics"][-1], start)
    return {**found, "quantized": {**done, "quantization": made["quantization"]}}


def _check(
    plan: Path, output: Path | None, records: Path, limit: int | None, budget: float, flips: float
) -> None:
    """Complain before hours of work."""
    from pulse_edge.evaluate.labels import read_labels

    read_labels(records)
    if limit is not None and limit < 1:
        raise UserError("--limit must be at least 1.")
    if budget < 0 or not 0 <= flips <= 1:
        raise UserError("--budget is at least 0, and --flips a share from 0 to 1.")
    if plan.exists() or (output is not None and Path(output).exists()):
        raise UserError(f"{plan if plan.exists() else output} exists already. Choose another name.")
    if not plan.resolve().parent.is_dir():
        raise UserError(f"There is no folder {plan.resolve().parent}. Make it, or choose another --plan.")


def _bits(choices: str) -> tuple[int, ...]:
    """Read ``4,8,16``."""
    try:
        bits = tuple(sorted({int(part) for part in choices.split(",")}))
    except ValueError:
        bits = ()
    if not bits or not set(bits) <= {4, 8, 16}:
        raise UserError(f"--choices {choices!r} is not a list of 4, 8 and 16. Write for example 4,8.")
    return bits
