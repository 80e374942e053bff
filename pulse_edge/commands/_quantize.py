"""`quantize`: a checkpoint's weights become integers, and what that costs is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pulse_edge.errors import UserError


def quantize(
    checkpoint: str = "pulse-nano",
    output: Path | None = None,
    bits: int = 4,
    group: int | None = None,
    asymmetric: bool = False,
    method: str = "gptq",
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
        ``{"checkpoint", "bytes", "quantization", "gate", "seconds"}``.

    Raises:
        UserError: options that cannot be used, or no records and no ``accept_loss``.
        BudgetError: the accuracy gate was not passed; nothing was kept.
    """
    from pulse_edge.bundle import disk_errors
    from pulse_edge.compress import quantize_checkpoint
    from pulse_edge.model.checkpoint import resolve_model

    source = resolve_model(checkpoint)
    output = Path(output) if output is not None else Path(f"{source.resolve().name}-int{bits}")
    if records is None and not accept_loss:
        raise UserError(
            "Name the ECGs on which the loss of accuracy is measured: --records LABELS_CSV. To do without, "
            "add --accept-loss, which is recorded."
        )
    start = time.perf_counter()
    chosen = group if group is not None or bits == 8 else _group(source)
    with disk_errors(output.parent):
        result = quantize_checkpoint(
            source, output, bits, chosen, not asymmetric, method, calibration, calibration_size, seed,
            force_text, _gate(source, bits, records, split, limit, accept_loss, tick), tick,
        )  # fmt: skip
    return {
        "checkpoint": str(output),
        "bytes": sum(path.stat().st_size for path in output.iterdir()),
        "quantization": result["quantization"],
        "gate": result["metrics"][-1],
        "seconds": time.perf_counter() - start,
    }


def _group(checkpoint: Path) -> int:
    """Return the larger of 128 and 64 that divides the decoder's widths, 64 if neither does."""
    from pulse_edge.model.weights import read_json

    config = read_json(checkpoint / "config.json")
    text = config.get("text_config", config)
    widths = [text.get(name) or 0 for name in ("hidden_size", "intermediate_size")]
    return 128 if all(isinstance(width, int) and width % 128 == 0 for width in widths) else 64


def _gate(
    source: Path,
    bits: int,
    records: Path | None,
    split: str | None,
    limit: int | None,
    accept_loss: bool,
    tick: Callable[[str, int, int], None],
) -> Callable[[Path], dict[str, Any]]:
    """Return what scores the finished checkpoint beside the one that it came from."""
    stage = f"int{bits}"
    if records is None:
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
        from pulse_edge.evaluate.gate import BUDGETS, compare, judge
        from pulse_edge.evaluate.score import Scored, score_records
        from pulse_edge.runtimes.load import load

        def score(path: Path, what: str) -> Scored:
            def show(done: int, total: int) -> None:
                tick(what, done, total)

            return score_records(load(path, own=True), Path(records), split, limit, None, show)

        found = compare(score(source, "scoring before"), score(folder, "scoring after"))
        side = "all" if split is None else split
        row = {"stage": stage, "set": f"{side} patients of {Path(records).name}"}
        return {**row, **judge(found, BUDGETS[bits], accept_loss)}

    return measure
