"""Distillation: lessons, losses, students of other shapes, resuming, and the gate."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pulse_edge import commands
from pulse_edge.compress.lessons import Lessons, Plan, margins, packed, read, spoken, yes_no_ids
from pulse_edge.compress.recipe import read_recipe
from pulse_edge.compress.teach import Course, Weights, _divergence, _unlike, teach
from pulse_edge.contract import IGNORE_ID
from pulse_edge.errors import BudgetError, UnknownNameError, UserError
from pulse_edge.model.checkpoint import load_model, read_card
from pulse_edge.model.packed import normalize
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.reference import TorchBackend
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.samples import SAMPLES, samples

RECIPE: dict[str, Any] = {
    "student": {"start": "pruned", "cut": {"layers": 1, "mlp": 16, "tower": 0.5}},
    "lessons": {"pages": 4},
    "course": {"steps": 3, "batch": 2, "learning_rate": 0.002},
}


@pytest.fixture(scope="module", autouse=True)
def few_pages() -> Iterator[None]:
    """Four pages a file, not sixteen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pulse_edge.compress.lessons.SHARD", 4)
        patch.setattr("pulse_edge.compress.distill._CALIBRATION", 2)
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped samples as if their patients were training patients."""
    path = tmp_path_factory.mktemp("training") / "labels.csv"
    rows = samples()
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for k, row in enumerate(rows):
            writer.writerow({**row, "record": str(SAMPLES / row["record"]), "patient_id": f"p{k}"})
    return path


@pytest.fixture(scope="module")
def lessons(small_checkpoint: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    folder = tmp_path_factory.mktemp("lessons")
    return Lessons(folder, Plan(table, 4), small_checkpoint, load_model(small_checkpoint, "float32"))


def recipe(folder: Path, **changes: Any) -> str:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **changes}))
    return str(path)


def test_lessons_hold_what_the_teacher_says(small_checkpoint, lessons) -> None:
    """Margins and words as the reference backend computes them, one question at a time."""
    model, tokenizer = load_model(small_checkpoint, "float32"), Tokenizer.from_folder(small_checkpoint)
    batch = lessons.batch([3], ("tiles", "features", "margins", "said"))
    backend = TorchBackend(model)
    visual = backend.encode(normalize(batch["tiles"][0]).numpy(), (2200, 1700))
    assert torch.allclose(batch["features"][0].float(), torch.from_numpy(visual), atol=2e-2, rtol=2e-3)
    yes, no = yes_no_ids(tokenizer)
    closed = [turn for turn in batch["turns"][0] if turn.kind == "superclass"]
    for k, turn in enumerate(closed):
        logits = backend.prefill(visual, encode_prompt(build_prompt([(turn.question, None)]), tokenizer))
        assert batch["margins"][0, k] == pytest.approx(logits[yes] - logits[no], abs=2e-3)
    first = backend.prefill(visual, encode_prompt(build_prompt([(closed[0].question, None)]), tokenizer))
    again = batch["said"][0].float() @ model.lm_head.weight.T
    assert torch.allclose(again, torch.from_numpy(first), atol=0.02 * float(abs(first).max()))


def test_lessons_are_the_same_again_and_grow(small_checkpoint, table, tmp_path, lessons) -> None:
    model = load_model(small_checkpoint, "float32")
    more = Lessons(tmp_path / "more", Plan(table, 6), small_checkpoint, model)
    assert (more.shards, lessons.shards) == (2, 1)
    assert more.journal.part(0).read_bytes() == lessons.journal.part(0).read_bytes()
    told: list[int] = []
    Lessons(tmp_path / "more", Plan(table, 8), small_checkpoint, model, lambda done, _: told.append(done))
    assert told == [8]  # the second file is whole already
    with pytest.raises(UserError, match="other settings"):
        Lessons(tmp_path / "more", Plan(table, 6, seed=1), small_checkpoint, model)


def test_only_training_patients_are_learnt_from(small_checkpoint, tmp_path) -> None:
    model = load_model(small_checkpoint, "float32")
    with pytest.raises(UserError, match="training patient"):  # the samples' own patients are test patients
        Lessons(tmp_path, Plan(SAMPLES / "samples.csv", 16), small_checkpoint, model)


def test_the_parts_of_the_loss() -> None:
    logits = torch.randn(7, 11)
    assert _divergence(logits, logits, 2.0).abs().max() < 1e-6
    other = torch.randn(7, 11)
    soft = [torch.softmax(x / 2, -1) for x in (other, logits)]
    by_hand = (soft[0] * (soft[0].log() - soft[1].log())).sum(-1) * 4
    assert torch.allclose(_divergence(logits, other, 2.0), by_hand, atol=1e-5)
    fine = torch.randn(2, 5 * 16, 8)
    assert _unlike(fine, fine) == 0
    grid = fine.reshape(2, 5, 2, 2, 2, 2, 8).mean((3, 5)).reshape(2, 20, 8)  # 4 x 4 pooled to 2 x 2
    assert _unlike(fine, grid) < 1e-10


def test_a_student_that_is_the_teacher_has_nothing_to_learn(small_checkpoint, lessons, tmp_path) -> None:
    model = load_model(small_checkpoint, "float32")
    head = model.lm_head.weight.detach().clone()
    course = Course(steps=1, batch=4, learning_rate=1e-12, weights=Weights(0, 1, 0, 1), vision=False)
    losses = teach(model, lessons.tokenizer, head, lessons, course, tmp_path)
    assert losses["response"] < 1e-3  # what half precision leaves


def test_learning_lowers_the_distance_to_the_teacher(small_checkpoint, lessons, tmp_path) -> None:
    """Measured on pages of the lessons, by the labels' margins, outside of the loop."""
    teacher = load_model(small_checkpoint, "float32")
    batch = lessons.batch([0, 1, 2, 3], ("features", "margins"))

    def distance(model: Any) -> float:
        asked = packed(batch["turns"], lessons.tokenizer, batch["features"].shape[1] // 5)
        with torch.no_grad():
            hidden = read(model, batch["features"].float(), asked)
            own = margins(model, hidden, asked["closed"].clamp(min=0), yes_no_ids(lessons.tokenizer))
        known = batch["margins"].isfinite()
        return float((own.sigmoid() - batch["margins"].sigmoid())[known].abs().mean())

    student = load_model(small_checkpoint, "float32")
    with torch.no_grad():
        for weight in student.model.language_model.layers[1].parameters():
            weight.mul_(0.2)
    before = distance(student)
    told = Weights(answers=0, response=0, labels=1, features=0)
    course = Course(steps=20, batch=4, learning_rate=1e-3, average=0.5, vision=False, weights=told)
    teach(student, lessons.tokenizer, teacher.lm_head.weight.detach(), lessons, course, tmp_path)
    assert distance(student) < 0.8 * before


@pytest.mark.parametrize("alone", [False, True])
def test_the_command_makes_a_smaller_checkpoint(small_checkpoint, table, tmp_path, alone) -> None:
    made = commands.distill(
        str(small_checkpoint), tmp_path / "s", recipe(tmp_path), table, alone=alone, accept_loss=True
    )
    teacher, student = made["parameters"]
    assert student < teacher
    assert made["distillation"]["losses"].keys() == (
        {"answers"} if alone else {"answers", "response", "labels", "features"}
    )
    card = read_card(tmp_path / "s")
    assert card["parent"]["name"] == "small"
    assert ("without teacher" in card["recipe"]) == alone
    assert sum(p.numel() for p in load_model(tmp_path / "s").parameters()) == student
    assert not list(tmp_path.glob("*.distilling"))


def test_a_student_of_another_shape_learns_the_teachers_words(small_checkpoint, table, tmp_path) -> None:
    """Another tower with more tokens a tile, another family and width: features are pooled and mapped."""
    other = {
        "start": "fresh",
        "vision": {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48,
                   "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 336, "patch_size": 28},
        "text": {"model_type": "qwen2", "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1,
                 "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048},
    }  # fmt: skip
    course = {"steps": 1, "batch": 2}
    told = recipe(tmp_path, student=other, course=course, lessons={"pages": 4, "answers": "teacher"})
    made = commands.distill(str(small_checkpoint), tmp_path / "s", told, table, accept_loss=True)
    assert made["distillation"]["settings"]["answers"] == "teacher"
    model = load_model(tmp_path / "s", "float32")
    assert model.encode_images(torch.zeros(5, 3, 336, 336)).shape == (5, 144, 48)


def test_the_teachers_own_report_is_its_greedy_answer(small_checkpoint, table, tmp_path) -> None:
    from pulse_edge.ecg.instruct import REPORT_QUESTION
    from pulse_edge.runtimes.generate import greedy

    model, tokenizer = load_model(small_checkpoint, "float32"), Tokenizer.from_folder(small_checkpoint)
    told = Lessons(tmp_path, Plan(table, 4, answers="teacher"), small_checkpoint, model)
    batch = told.batch([0], ("tiles",))
    said = next(turn.answer for turn in batch["turns"][0] if turn.kind == "report")
    backend = TorchBackend(model)
    visual = backend.encode(normalize(batch["tiles"][0]).numpy(), (2200, 1700))
    logits = backend.prefill(visual, encode_prompt(build_prompt([(REPORT_QUESTION, None)]), tokenizer))
    text = "".join(piece for piece, _ in greedy(backend, tokenizer, logits, 96))
    assert said == text.strip()


def test_a_killed_run_goes_on_and_ends_in_the_same_weights(small_checkpoint, table, tmp_path) -> None:
    kept = tmp_path / "lessons"
    told = recipe(tmp_path)
    commands.distill(str(small_checkpoint), tmp_path / "whole", told, table, kept, accept_loss=True)

    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("teaching", 2):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pulse_edge.compress.teach.SAVE_S", -1.0)  # a state after every step
        with pytest.raises(KeyboardInterrupt):
            commands.distill(
                str(small_checkpoint), tmp_path / "twice", told, table, kept, accept_loss=True, tick=stop
            )
    assert not (tmp_path / "twice").exists()
    again: list[tuple[str, int]] = []
    commands.distill(
        str(small_checkpoint), tmp_path / "twice", told, table, kept, accept_loss=True,
        tick=lambda what, done, total: again.append((what, done)),
    )  # fmt: skip
    assert ("teaching", 0) not in again
    assert ("teaching", 2) in again
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "twice"))
    assert one == two


def test_a_broken_budget_leaves_nothing_and_exits_3(small_checkpoint, table, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pulse_edge.commands._distill.KEPT", 5.0)  # no model can gain that much
    with pytest.raises(BudgetError, match="Teach for longer") as caught:
        commands.distill(
            str(small_checkpoint), tmp_path / "s", recipe(tmp_path), table,
            records=SAMPLES / "samples.csv", split=None,
        )  # fmt: skip
    assert caught.value.exit_code == 3
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "s.trial").exists()


def test_recipes_that_cannot_be_used(small_checkpoint, table, tmp_path) -> None:
    assert read_recipe("nano-third").pages == 1536
    with pytest.raises(UnknownNameError, match="'nano-third'"):
        read_recipe("nano-thirt")
    for changes, what in (
        ({"curse": {}}, "course"),
        ({"course": {"stepps": 3}}, "steps"),
        ({"weights": {"label": 1}}, "labels"),
        ({"lessons": {"pages": 4, "answers": "teachers"}}, "teacher"),
    ):
        with pytest.raises(UnknownNameError, match=f"Did you mean '{what}'"):
            read_recipe(recipe(tmp_path, **changes))
    with pytest.raises(UserError, match="batch cannot be 0"):
        read_recipe(recipe(tmp_path, course={"steps": 1, "batch": 0}))
    with pytest.raises(UserError, match="vision and text"):
        read_recipe(recipe(tmp_path, student={"start": "fresh"}))
    with pytest.raises(UserError, match="--data"):
        commands.distill(str(small_checkpoint), tmp_path / "s", recipe(tmp_path), accept_loss=True)
    wrong = recipe(tmp_path, student={"start": "fresh", "vision": {"model_type": "x"}, "text": {}})
    with pytest.raises(UserError, match="cannot be built"):
        commands.distill(str(small_checkpoint), tmp_path / "s", wrong, table, accept_loss=True)


def test_words_are_weighed_where_they_are_said(small_checkpoint, lessons) -> None:
    batch = lessons.batch([0, 1], ("said",))
    asked = packed(batch["turns"], lessons.tokenizer, 49)
    assert len(batch["said"]) == int((asked["labels"][:, 1:] != IGNORE_ID).sum())
    hidden = torch.arange(asked["ids"].numel(), dtype=torch.float32).reshape(*asked["ids"].shape, 1)
    rows = spoken(hidden, asked["labels"])[:, 0].long()
    flat = asked["labels"].flatten()
    assert (flat[rows + 1] != IGNORE_ID).all()  # each state says the token behind it
