"""Distillation recipes: what the student is, and how it is taught; YAML, some of them in compress/recipes/::

name: nano-third
seed: 0
student:
  start: pruned                # the teacher's own weights, cut down; or `fresh`, or a checkpoint's folder
  cut: {layers: 1, mlp: 96}    # of a pruned start: fields of cut.Cut
  vision: {...}                # of a fresh one: fields of the tower's and the language model's
  text: {...}                  # configurations, each with its model_type
lessons: {pages: 1536, answers: labels}   # or answers: teacher
course: {steps: 1500}          # further fields of teach.Course
weights: {answers: 0.5, response: 1.0, labels: 1.0, features: 1.0}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import yaml

from pulse_edge.compress.cut import Cut
from pulse_edge.compress.lessons import ANSWERS
from pulse_edge.compress.teach import Course, Weights
from pulse_edge.errors import UnknownNameError, UserError

RECIPES: Final = Path(__file__).parent / "recipes"
_SECTIONS: Final = ("name", "seed", "student", "lessons", "course", "weights")


@dataclass(frozen=True)
class Student:
    """What is taught.

    Attributes:
        start: ``pruned``, ``fresh``, or the folder of a checkpoint.
        cut: of a pruned start.
        vision, text: configurations of a fresh one.
    """

    start: str = "pruned"
    cut: Cut = field(default_factory=Cut)
    vision: Mapping[str, Any] | None = None
    text: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Recipe:
    """A whole distillation.

    Attributes:
        name: of the file.
        student: what is taught.
        pages: lessons that are made.
        answers: whose reports are learnt, ``labels`` or ``teacher``.
        course: how it is taught.
    """

    name: str
    student: Student
    pages: int
    answers: str
    course: Course


def read_recipe(named: Path | str) -> Recipe:
    """Read a recipe by its path, or one that ships by its name.

    Raises:
        UserError: the file is missing or says something impossible.
        UnknownNameError: it has a key that no recipe has, or there is no recipe of this name.
    """
    path = Path(named)
    if not path.is_file():
        known = {file.stem: file for file in RECIPES.glob("*.yaml")}
        if path.suffix or len(path.parts) > 1:
            raise UserError(f"There is no {path}. Name a recipe: {', '.join(sorted(known))}, or a YAML file.")
        if path.name not in known:
            raise UnknownNameError("recipe", path.name, known)
        path = known[path.name]
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}. Correct the file.") from error
    _known(raw, _SECTIONS, path)
    student = dict(raw.get("student") or {})
    cut = _made(Cut, student.pop("cut", {}), path)
    lessons = _known(dict(raw.get("lessons") or {}), ("pages", "answers"), path)
    weights = _made(Weights, raw.get("weights") or {}, path)
    seed = raw.get("seed", 0)
    course = _made(Course, {"steps": 0, **(raw.get("course") or {})}, path, ("weights", "vision", "seed"))
    recipe = Recipe(
        str(raw.get("name", path.stem)),
        replace(_made(Student, student, path, ("cut",)), cut=cut),
        lessons.get("pages", 0),
        lessons.get("answers", ANSWERS[0]),
        replace(course, weights=weights, seed=seed),
    )
    _check(recipe, path)
    return recipe


def _known(raw: Any, keys: tuple[str, ...], path: Path) -> Any:
    if not isinstance(raw, dict):
        raise UserError(f"{path} lacks keys where some of {', '.join(keys)} belong. Correct the file.")
    for key in raw:
        if key not in keys:
            raise UnknownNameError(f"key in {path.name}", str(key), keys)
    return raw


def _made(kind: type[Any], raw: Any, path: Path, without: tuple[str, ...] = ()) -> Any:
    names = tuple(one.name for one in fields(kind) if one.name not in without)
    return kind(**_known(raw, names, path))


def _check(recipe: Recipe, path: Path) -> None:
    course, weights = recipe.course, recipe.course.weights
    numbers = {
        "pages": recipe.pages, "steps": course.steps, "batch": course.batch,
        "learning_rate": course.learning_rate, "temperature": course.temperature,
    }  # fmt: skip
    for name, value in numbers.items():
        whole = name in ("pages", "steps", "batch")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or value <= 0:
            raise UserError(f"{path}: {name} cannot be {value!r}. Give a {'whole ' * whole}number above 0.")
    shares = [getattr(weights, one.name) for one in fields(weights)]
    if not all(isinstance(share, int | float) and share >= 0 for share in shares) or not any(shares):
        raise UserError(f"{path}: weights are numbers from 0 on, at least one of them above. Correct it.")
    if not isinstance(course.seed, int):
        raise UserError(f"{path}: seed cannot be {course.seed!r}. Give a whole number.")
    if recipe.answers not in ANSWERS:
        raise UnknownNameError("answers", str(recipe.answers), ANSWERS)
    if recipe.student.start == "fresh" and (recipe.student.vision is None or recipe.student.text is None):
        raise UserError(f"{path}: a fresh student needs the configurations vision and text. Write them in.")
