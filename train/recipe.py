"""Recipes: YAML files that say what is trained and how; an unknown key is an error."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pulse_edge.errors import UnknownNameError, UserError

KINDS = ("reference", "sft")  # stages of our own (pulse-nano), or one stage of fine-tuning (PULSE)
STAGES = ("see", "speak", "tune")  # objective.py says what each learns
_STAGES = ({"see", "speak"}, {"tune"}, {"see", "speak", "tune"})
RECIPES = Path(__file__).parent / "recipes"
T = TypeVar("T")


@dataclass(frozen=True)
class TrainSettings:
    """How long and how hard to train in one stage.

    Attributes:
        pages: rendered pages seen in all.
        photos: share of them that come as a phone's photo.
        morphs: share of them that show records between records, of which only the teacher's opinion is known.
        batch: pages in a step.
        learning_rate: peak of the one-cycle cosine.
        weight_decay: of AdamW.
        warmup: share of the steps.
        average_decay: of the exponential moving average of the weights, which is what is kept.
        evaluate_every: steps between validations.
        parent: share of the weights that it began with in those that are kept; 0 in see and speak.
    """

    pages: int
    photos: float
    morphs: float
    batch: int
    learning_rate: float
    weight_decay: float
    warmup: float
    average_decay: float
    evaluate_every: int
    parent: float


@dataclass(frozen=True)
class ModelShape:
    """Shape of the model: vocabulary, and the arguments of the vision and text configurations."""

    vocab_size: int
    vision: dict[str, Any]
    text: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A whole recipe.

    Attributes:
        file: the name of its file.
        name: of the checkpoint.
        seed: of everything random.
        model: its shape.
        train: the settings of each stage, in the order of :data:`STAGES`. ``see`` and ``speak`` make a model,
            ``tune`` needs one.
    """

    file: str
    name: str
    seed: int
    model: ModelShape
    train: dict[str, TrainSettings]


def open_recipe(name_or_path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Find a shipped recipe by name, or a recipe file by path, and parse it; no key is looked at.

    Raises:
        UnknownNameError: no such recipe.
        UserError: the file is not YAML, or not a mapping.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        path = RECIPES / f"{name_or_path}.yaml"
        if not path.is_file():
            raise UnknownNameError("recipe", str(name_or_path), [p.stem for p in RECIPES.glob("*.yaml")])
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"Cannot read the recipe {path}: {error}. Check the path and the YAML.") from error
    if not isinstance(raw, dict):
        raise UserError(f"The recipe {path} is not a mapping. Start from {RECIPES / 'pulse-nano.yaml'}.")
    kind = raw.setdefault("kind", KINDS[0])
    if kind not in KINDS:
        raise UnknownNameError(f"kind of recipe in {path.name}", str(kind), KINDS)
    return path, raw


def read_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe of the kind ``reference``; ``sft_recipe.py`` reads the others.

    Raises:
        UnknownNameError: no such recipe, or a key that no recipe has.
        UserError: the file is not YAML, is of another kind, or a key is missing.
    """
    path, raw = open_recipe(name_or_path)
    if raw.pop("kind") != KINDS[0]:
        raise UserError(f"{path} is a recipe for supervised fine-tuning. Start from pulse-nano instead.")
    stages = raw.get("train")
    if not isinstance(stages, dict) or set(stages) not in _STAGES:
        raise UserError(f"{path}: train needs the stages see and speak, or tune, or all three.")
    raw["train"] = {stage: fill(TrainSettings, stages[stage], path) for stage in STAGES if stage in stages}
    if "speak" in raw["train"] and raw["train"]["speak"].morphs:
        raise UserError(f"{path}: speak learns answers, and morphs have none. Set its morphs to 0.")
    if any(settings.parent for stage, settings in raw["train"].items() if stage != "tune"):
        raise UserError(f"{path}: see and speak may begin with random weights. Set their parent to 0.")
    raw["model"] = fill(ModelShape, raw.get("model"), path)
    return fill(Recipe, {**raw, "file": path.name}, path)


def fill(kind: type[T], raw: Any, path: Path) -> T:
    """Make a dataclass of a part of a recipe, which must have exactly its fields.

    Raises:
        UnknownNameError: a key that is none of its fields.
        UserError: a field is missing.
    """
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    given = raw if isinstance(raw, dict) else {}
    for key in given:
        if key not in names:
            raise UnknownNameError(f"key in {path.name}", str(key), names)
    missing = [name for name in names if name not in given]
    if missing:
        raise UserError(f"The recipe {path} lacks {', '.join(missing)}. Add it; recipes have no defaults.")
    return kind(**given)
