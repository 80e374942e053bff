"""A small student learns from a teacher: a recipe and a checkpoint become a smaller checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from pulse_edge.bundle import sha256_file
from pulse_edge.compress.calibrate import CalibrationRecipe, build
from pulse_edge.compress.cut import Tick, check_cut, cut_model
from pulse_edge.compress.journal import Journal
from pulse_edge.compress.lessons import Lessons, Plan
from pulse_edge.compress.prune import count, load_unrounded, save_judged
from pulse_edge.compress.recipe import Recipe, Student
from pulse_edge.compress.teach import Weights, teach
from pulse_edge.errors import CheckpointError, UserError
from pulse_edge.model.checkpoint import load_model, read_card, resolve_model
from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.model.weights import brief

_CALIBRATION = 64  # pages that decide what a pruned student begins with


def write_distilled(
    teacher: Path,
    output: Path,
    recipe: Recipe,
    records: Path,
    gate: Callable[[Path], dict[str, Any]],
    lessons: Path | None = None,
    alone: bool = False,
    tick: Tick = lambda what, done, total: None,
) -> dict[str, Any]:
    """Write a student's checkpoint.

    Args:
        teacher: a checkpoint's folder; not quantised.
        output: a new folder; an interrupted call leaves ``<output>.distilling`` and is resumed from it.
        recipe: what the student is, and how it is taught.
        records: a labels.csv; only its training patients are learnt from.
        gate: given the finished folder before it gets its name; returns the card's row of metrics, or raises.
        lessons: folder where the lessons are kept for further students of this teacher; by default they
            are made for this one and thrown away.
        alone: teach with the answers alone, without the teacher: the control of an experiment.
        tick: called with the name of the stage, and parts done and in all.

    Returns:
        The card's fields ``distillation`` and ``metrics``, and ``parameters`` of teacher and student.

    Raises:
        UserError: the recipe does not fit the teacher.
        PulseEdgeError: whatever ``gate`` raises; ``output`` is not there then.
    """
    if alone:
        recipe = replace(recipe, course=replace(recipe.course, weights=Weights(1.0, 0.0, 0.0, 0.0)))
    weights = {path.name: sha256_file(path) for path in sorted(teacher.glob("*.safetensors"))}
    work = output.with_name(output.name + ".distilling")
    job = {"teacher": weights, "recipe": repr(asdict(recipe)), "records": sha256_file(records)}
    Journal(work, job)
    load_unrounded(teacher)
    model = load_model(teacher, "float32")
    student, tokenizer, begun = _begin(recipe.student, model, teacher, records, recipe.course.seed, tick)
    made = Lessons(
        lessons or work / "lessons",
        Plan(records, recipe.pages, recipe.course.seed, recipe.answers),
        teacher,
        model,
        lambda done, total: tick("lessons", done, total),
    )
    size, head = count(model), model.lm_head.weight.detach()
    del model
    losses = teach(
        student, tokenizer, head, made, recipe.course, work / "course",
        lambda done, total: tick("teaching", done, total),
    )  # fmt: skip
    parent = read_card(teacher)
    summary = {
        "recipe": recipe.name,
        "settings": {**asdict(recipe.course), "pages": recipe.pages, "answers": recipe.answers},
        "student": {"start": recipe.student.start, **begun},
        "losses": losses,
    }
    card = {
        **parent,
        "name": output.name,
        "parent": {"name": parent["name"], "weights": weights, "recipe": parent["recipe"]},
        "recipe": f"distill {recipe.name}, seed {recipe.course.seed}"
        + (", without teacher" if alone else ""),
        "distillation": summary,
        "calibration": None,  # the teacher's is of other weights
    }
    metrics = save_judged(student.half(), tokenizer, output, card, gate)
    shutil.rmtree(work)
    return {"distillation": summary, "metrics": metrics, "parameters": [size, count(student)]}


def _begin(
    student: Student,
    teacher: PulseForConditionalGeneration,
    folder: Path,
    records: Path,
    seed: int,
    tick: Tick,
) -> tuple[PulseForConditionalGeneration, Tokenizer, dict[str, Any]]:
    """Return the student before its first lesson, float32, its tokenizer, and what was decided about it."""
    tokenizer = Tokenizer.from_folder(folder)
    if student.start == "pruned":
        check_cut(student.cut, teacher.config)
        prompts, facts = build(
            CalibrationRecipe(records.stem, records, size=_CALIBRATION, seed=seed),
            tick=lambda done, total: tick("calibration pages", done, total),
        )
        made, decided = cut_model(teacher, student.cut, prompts, tokenizer, tick)
        return made, tokenizer, {"cut": student.cut.text, "calibration": facts, **decided}
    if student.start == "fresh":
        torch.manual_seed(seed)
        return _fresh(student, teacher.config), tokenizer, {}
    other = resolve_model(student.start)
    return load_model(other, "float32"), Tokenizer.from_folder(other), {"name": read_card(other)["name"]}


def _fresh(student: Student, config: PulseConfig) -> PulseForConditionalGeneration:
    """Build a student of the recipe's shape with random weights."""
    vision, text = dict(student.vision or {}), dict(student.text or {})
    try:
        parts = {
            "text_config": AutoConfig.for_model(**{"vocab_size": config.text_config.vocab_size, **text}),
            "vision_config": AutoConfig.for_model(**vision),
        }
        clip = vision["model_type"] != "pulse_conv"
        return PulseForConditionalGeneration(
            PulseConfig(
                **parts,
                vision_feature_layer=-2 if clip else -1,
                vision_feature_select_strategy="default" if clip else "full",
                tie_word_embeddings=bool(text.get("tie_word_embeddings", True)),
            )
        )
    except (CheckpointError, UserError):
        raise
    except Exception as error:  # whatever a wrong value in the recipe leads to
        raise UserError(
            f"The recipe's student cannot be built ({brief(error)}). Correct its fields vision and text."
        ) from error
