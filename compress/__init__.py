"""From a checkpoint to a smaller one: integer weights, calibrated on ECGs, judged by the accuracy gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_edge.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    from pulse_edge.compress.form import Form


def quantize_checkpoint(
    checkpoint: Path,
    output: Path,
    bits: int,
    group: int | None,
    symmetric: bool,
    method: str,
    calibration: Path | str | None,
    size: int | None,
    seed: int | None,
    force_text: bool,
    gate: Callable[[Path], dict[str, Any]],
    tick: Callable[[str, int, int], None] = lambda what, done, total: None,
    forms: Mapping[str, Form | None] | None = None,
    embedding: int = 16,
    head: int = 16,
) -> dict[str, Any]:
    """Quantise a checkpoint's decoder; see ``quantize.write_quantized``.

    Raises:
        MissingExtraError: torch, transformers or safetensors are not installed.
        UserError: settings that cannot be used, or the output exists.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists already. Choose another --output.")
    try:
        from pulse_edge.compress.form import Form
        from pulse_edge.compress.quantize import Settings, write_quantized
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "compress") from error
    settings = Settings(Form(bits, group, symmetric), method, calibration, size, seed, force_text, forms or {}, embedding, head)
    return write_quantized(checkpoint, output, settings, gate, tick)


def read_plan(path: Path) -> tuple[dict[str, Form | None], dict[str, str]]:
    """Read a plan; see ``plan.read_plan``.

    Raises:
        MissingExtraError: torch is not installed.
        UserError: the file is not a plan.
    """
    try:
        from pulse_edge.compress.plan import read_plan as read
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "compress") from error
    return read(path)
