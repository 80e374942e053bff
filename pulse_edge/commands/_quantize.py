"""`quantize`: a checkpoint's weights become integers, and what that costs is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_edge.errors import UserError

if TYPE_CHECKING:
    from pulse_edge.compress.form import Form


def quantize(
    checkpoint: str = "pulse-nano",
    output: Path | None = None,
    bits: int = 4,
    group: int | None = None,
    asymmetric: bool = False,
    method: str = "gptq",
    embedding: int = 16,
    lm_head: int = 16,
    plan: Path | None = None,
    calibration: str | None = None,
    calibration_size: int | None = None,
    seed: int | None = None,
    force_text: bool = False,
    records: Path | None = None,
    split: str | None = "test",
    limit: int | None = None,
    accept_loss: bool = False,
    tick: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Quantise the decoder of a checkpoint and pass the accuracy gate.

    Args:
        checkpoint: folder or shipped name.
        output: folder of the new checkpoint; ``./<checkpoint>-int<bits>`` by default.
        bits: 8 or 4.
        group: weights of a row that share a scale: 32, 64 or 128. By default one scale a row for 8 bits,
            and for 4 bits the largest of 128 and 64 that divides the model's widths.
        asymmetric: with zero points, which TensorRT does not take.
        method: rtn, clip, awq or gptq.
        embedding: bits of the embedding table: 16 as it is, or 8 with a scale for every token.
        lm_head: bits of the head, likewise; of a tied model the same as ``embedding``.
        plan: file of `search` that says the form of every layer; ``bits`` and ``group`` are left out then.
        calibration: labels.csv, YAML file or registered name of the set to calibrate on; its training
            patients are used.
        calibration_size: pages of it.
        seed: of it.
        force_text: take a calibration set without pictures.
        records: labels.csv that both models are scored on.
        split: patients of ``records``: test, validation, train, or all of them with None.
        limit: at most so many records.
        accept_loss: keep the result if it breaks its budget, or is not measured; both are recorded.
        tick: called with the name of the stage, and parts done and in all.

    Returns:
        That of ``_judged.ended`` and ``{"quantization"}``.

    Raises:
        UserError: options that cannot be used, or no records and no ``accept_loss``.
        BudgetError: the accuracy gate was not passed; nothing was kept.
    """
    from pulse_edge.bundle import disk_errors
    from pulse_edge.commands._judged import ended, judged
    from pulse_edge.compress import quantize_checkpoint
    from pulse_edge.evaluate.gate import BUDGETS, REMEDY
    from pulse_edge.model.checkpoint import resolve_model

    source = resolve_model(checkpoint)
    forms = None if plan is None else _forms(Path(plan), source)
    if forms is not None:
        bits = min((form.bits for form in forms.values() if form is not None), default=8)
    output = Path(output) if output is not None else Path(f"{source.resolve().name}-int{bits}")
    start = time.perf_counter()
    gate = judged(
        f"int{bits}", source, records, split, limit, lambda auroc: BUDGETS[bits], REMEDY, accept_loss, tick
    )
    chosen = group if group is not None or bits == 8 else usual_group(source)
    with disk_errors(output.parent):
        result = quantize_checkpoint(
            source, output, bits, chosen, not asymmetric, method, calibration, calibration_size, seed,
            force_text, gate, tick, forms, embedding, lm_head,
        )  # fmt: skip
    return {
        **ended(source, output, result["metrics"][-1], start),
        "quantization": result["quantization"],
    }


def usual_group(checkpoint: Path) -> int:
    """Return the larger of 128 and 64 that divides the decoder's widths, 64 if neither does."""
    from pulse_edge.model.weights import read_json

    config = read_json(checkpoint / "config.json")
    text = config.get("text_config", config)
    widths = [text.get(name) or 0 for name in ("hidden_size", "intermediate_size")]
    return 128 if all(isinstance(width, int) and width % 128 == 0 for width in widths) else 64


def _forms(plan: Path, source: Path) -> dict[str, Form | None]:
    """Read a plan, and check that it was made for this checkpoint."""
    from pulse_edge.bundle import sha256_file
    from pulse_edge.compress import read_plan

    found, weights = read_plan(plan)
    if weights != {path.name: sha256_file(path) for path in sorted(source.glob("*.safetensors"))}:
        raise UserError(
            f"{plan} was made for other weights than those of {source}. Make one: pulse-edge search {source}"
        )
    return found
