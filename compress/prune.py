"""A checkpoint loses layers, widths or visual tokens, heals, and passes the gate."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pulse_edge.bundle import sha256_file
from pulse_edge.compress.calibrate import Prompt, build, read_recipe
from pulse_edge.compress.cut import Cut, Tick, check_cut, cut_model
from pulse_edge.compress.journal import Journal
from pulse_edge.compress.lessons import Lessons, Plan
from pulse_edge.compress.teach import Course, Weights, teach
from pulse_edge.errors import UserError
from pulse_edge.model.checkpoint import load_model, read_card, save_model, write_card_field
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.quantized import quantized_names
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.model.weights import open_weights


@dataclass(frozen=True)
class Settings:
    """What a pruning does.

    Attributes:
        cut: what goes.
        calibration: a labels.csv, a YAML file or a registered name; needed where pages decide what goes.
        size, seed: of the calibration set; None as the set says.
        lessons: a labels.csv whose training patients' pages the pruned model heals on; None does without.
        pages: to heal on.
        steps: of healing, of sixteen pages each.
    """

    cut: Cut
    calibration: Path | str | None = None
    size: int | None = None
    seed: int | None = None
    lessons: Path | None = None
    pages: int = 512
    steps: int = 200


def write_pruned(
    checkpoint: Path,
    output: Path,
    settings: Settings,
    gate: Callable[[Path], dict[str, Any]],
    tick: Tick = lambda what, done, total: None,
) -> dict[str, Any]:
    """Write a smaller checkpoint.

    Args:
        checkpoint: its folder; not quantised.
        output: a new folder; an interrupted call leaves ``<output>.pruning`` and is resumed from it.
        settings: what to do.
        gate: given the finished folder before it gets its name; returns the card's row of metrics, or
            raises if the accuracy is not kept.
        tick: called with the name of the stage, and parts done and in all.

    Returns:
        The card's fields ``pruning`` and ``metrics``, and ``parameters`` before and after.

    Raises:
        UserError: settings that cannot be used with this checkpoint.
        PulseEdgeError: whatever ``gate`` raises; ``output`` is not there then.
    """
    cut, source = settings.cut, load_unrounded(checkpoint)
    check_cut(cut, source.config)
    if cut.sees_pages and settings.calibration is None:
        raise UserError(
            "What goes is decided on ECGs. Add --calibration LABELS_CSV; only visual tokens need none."
        )
    prompts, facts = _calibration(settings, tick)
    weights = {path.name: sha256_file(path) for path in sorted(checkpoint.glob("*.safetensors"))}
    work = output.with_name(output.name + ".pruning")
    Journal(work, {"weights": weights, "settings": repr(asdict(settings)), "calibration": facts})
    tokenizer = Tokenizer.from_folder(checkpoint)
    small, decided = cut_model(source, cut, prompts, tokenizer, tick)
    healed = None
    if settings.lessons is not None:
        healed = _heal(small, checkpoint, settings, settings.lessons, work, tick)
    summary = {
        "cut": {name: value for name, value in asdict(cut).items() if value is not None},
        "calibration": facts,
        **decided,
        "healing": healed,
    }
    parent = read_card(checkpoint)
    card = {
        **parent,
        "parent": {"name": parent["name"], "weights": weights, "recipe": parent["recipe"]},
        "recipe": f"prune {cut.text}" + (f", healed for {settings.steps} steps" if healed else ""),
        "pruning": summary,
        "calibration": None,  # the parent's is of other weights
    }
    metrics = save_judged(small, tokenizer, output, card, gate)
    shutil.rmtree(work)
    return {"pruning": summary, "metrics": metrics, "parameters": [count(source), count(small)]}


def load_unrounded(checkpoint: Path) -> PulseForConditionalGeneration:
    """Load a checkpoint in its own type.

    Raises:
        UserError: its weights are integers.
    """
    if quantized_names(open_weights(checkpoint)):
        raise UserError(f"{checkpoint} is quantised. Take the checkpoint that it came from; quantise last.")
    return load_model(checkpoint)


def save_judged(
    model: PulseForConditionalGeneration,
    tokenizer: Tokenizer,
    output: Path,
    card: dict[str, Any],
    gate: Callable[[Path], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Write a checkpoint, let the gate judge it before it has its name, and return its metrics."""
    trial = output.with_name(output.name + ".trial")
    try:
        save_model(model, tokenizer, trial, card)
        metrics = [*card["metrics"], gate(trial)]  # which also writes what belongs beside it
        write_card_field(trial, "metrics", metrics)
        trial.replace(output)
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    return metrics


def count(model: torch.nn.Module) -> int:
    """Return how many parameters a model has."""
    return sum(parameter.numel() for parameter in model.parameters())


def _calibration(settings: Settings, tick: Tick) -> tuple[list[Prompt], dict[str, Any] | None]:
    if not settings.cut.sees_pages or settings.calibration is None:
        return [], None
    recipe = read_recipe(settings.calibration, settings.size, settings.seed)
    return build(recipe, False, lambda done, total: tick("calibration pages", done, total))


def _heal(
    small: PulseForConditionalGeneration,
    checkpoint: Path,
    settings: Settings,
    records: Path,
    work: Path,
    tick: Tick,
) -> dict[str, Any]:
    """Teach the pruned model what it was; its eyes too where they were cut."""
    kind = small.dtype
    teacher = load_model(checkpoint, "float32")
    plan = Plan(records, settings.pages, settings.seed or 0)
    lessons = Lessons(
        work / "lessons", plan, checkpoint, teacher, lambda d, t: tick("pages to heal on", d, t)
    )
    course = Course(
        settings.steps, learning_rate=5e-4, weights=Weights(0.0), vision=settings.cut.tower is not None
    )
    head = teacher.lm_head.weight.detach()
    del teacher
    losses = teach(
        small.float(), Tokenizer.from_folder(checkpoint), head, lessons, course, work / "course",
        lambda d, t: tick("healing", d, t),
    )  # fmt: skip
    small.to(kind)
    return {"pages": settings.pages, "steps": settings.steps, "losses": losses}
