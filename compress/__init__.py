"""From a checkpoint to a smaller one: integers, pruning, distillation, each judged by the accuracy gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pulse_edge.errors import MissingExtraError, UserError

if TYPE_CHECKING:
    from pulse_edge.compress.form import Form
    from pulse_edge.evaluate.gate import Budget


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
    settings = Settings(
        Form(bits, group, symmetric),
        method,
        calibration,
        size,
        seed,
        force_text,
        forms or {},
        embedding,
        head,
    )
    return write_quantized(checkpoint, output, settings, gate, tick)


def prune_checkpoint(
    checkpoint: Path,
    output: Path,
    cut: dict[str, Any],
    calibration: Path | str | None,
    size: int | None,
    seed: int | None,
    healing: dict[str, Any],
    gate: Callable[[Path], dict[str, Any]],
    tick: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Prune a checkpoint; ``cut`` holds fields of ``cut.Cut``, ``healing`` lessons, pages and steps.

    See ``prune.write_pruned``.

    Raises:
        MissingExtraError: torch, transformers or safetensors are not installed.
        UserError: settings that cannot be used, or the output exists.
    """
    _refuse_existing(output)
    try:
        from pulse_edge.compress.cut import Cut
        from pulse_edge.compress.prune import Settings, write_pruned
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "compress") from error
    if min(healing["pages"], healing["steps"]) < 1:
        raise UserError("--heal-pages and --heal-steps are at least 1. To do without, leave --heal out.")
    return write_pruned(
        checkpoint, output, Settings(Cut(**cut), calibration, size, seed, **healing), gate, tick
    )


def distill_checkpoint(
    teacher: Path,
    output: Path,
    recipe: str,
    records: Path,
    lessons: Path | None,
    pages: int | None,
    steps: int | None,
    alone: bool,
    gate: Callable[[Path], dict[str, Any]],
    tick: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Teach a student; ``pages`` and ``steps`` stand in the recipe's place. See ``distill.write_distilled``.

    Raises:
        MissingExtraError: torch, transformers or safetensors are not installed.
        UserError: settings that cannot be used, or the output exists.
    """
    _refuse_existing(output)
    try:
        from pulse_edge.compress.distill import write_distilled
        from pulse_edge.compress.recipe import read_recipe
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "compress") from error
    if any(number is not None and number < 1 for number in (pages, steps)):
        raise UserError("--pages and --steps are at least 1.")
    plan = read_recipe(recipe)
    plan = replace(
        plan,
        pages=pages or plan.pages,
        course=replace(plan.course, steps=steps or plan.course.steps),
    )
    return write_distilled(teacher, output, plan, records, gate, lessons, alone, tick)


def _refuse_existing(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} exists already. Choose another --output.")


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


def search_plan(
    checkpoint: Path,
    plan: Path,
    bits: Sequence[int],
    group: int,
    device: str | None,
    method: str,
    calibration: Path | str | None,
    size: int | None,
    seed: int | None,
    records: Path,
    limit: int | None,
    budget: Budget,
    tick: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Search a form for every layer and draw the front; see ``search.search``.

    Args:
        checkpoint: its folder.
        plan: file to write; the picture is called likewise.
        bits: that a layer may take, of 4, 8 and 16.
        group: of 4 bits.
        device: whose time of a token is made least; None for the size.
        method: of rounding.
        calibration: set to calibrate on, with ``size`` pages and ``seed``.
        size: see there.
        seed: see there.
        records: labels.csv.
        limit: at most so many of its validation records.
        budget: that the mixture may cost.
        tick: called with the name of the stage, and parts done and in all.

    Raises:
        BudgetError: no mixture is within the budget.
        MissingExtraError: torch, transformers or safetensors are not installed.
        UserError: settings that cannot be used.
    """
    try:
        from pulse_edge.compress.chart import draw_front
        from pulse_edge.compress.cost import bytes_of, picoseconds_on
        from pulse_edge.compress.form import Form
        from pulse_edge.compress.mixture import Quest
        from pulse_edge.compress.quantize import Settings
        from pulse_edge.compress.search import search
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "compress") from error
    forms = {4: Form(4, group), 8: Form(8, None), 16: None}
    quest = Quest(
        Settings(forms[4] or Form(), method, calibration, size, seed),
        tuple(forms[b] for b in bits),
        records,
        limit,
        budget,
        bytes_of if device is None else picoseconds_on(device),
        "bytes" if device is None else "picoseconds",
    )
    found = search(checkpoint, plan, quest, tick)
    picture = plan.with_suffix(".png")
    draw_front(picture, found)
    return {**found, "picture": str(picture)}
