"""What the calibrated methods see: ECG pages with questions and answers, as in use.

A set is named by a labels.csv, or by a short YAML file of the user's own::

    name: our-clinic           # ~/.config/pulse-edge/calibration/our-clinic.yaml is found by this name
    records: labels.csv        # relative to this file
    side: train                # patients of this side of the split only (the default)
    size: 64
    photos: 0.5                # share of pages seen as a phone sees them
    seed: 1

Text alone is refused: a vision-language model calibrated without pictures lost three quarters of its score
at four bits (NVIDIA/TensorRT-LLM#1860).
"""

from __future__ import annotations

import collections
import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

from pulse_edge.contract import IMAGE_TOKEN
from pulse_edge.ecg import instruct
from pulse_edge.ecg.measure import measure
from pulse_edge.ecg.paper import PaperStyle, render
from pulse_edge.ecg.photo import draw_photo_style, photograph
from pulse_edge.ecg.record import read_record
from pulse_edge.ecg.split import SPLITS, split
from pulse_edge.errors import RecordError, UnknownNameError, UserError
from pulse_edge.evaluate.labels import read_labels

REGISTRY: Final = Path("~/.config/pulse-edge/calibration")
LAYOUTS: Final = ("3x4+1", "3x4+1", "3x4", "6x2", "12x1")
DPI: Final = 150.0


@dataclass(frozen=True)
class CalibrationRecipe:
    """Which pages a set has.

    Attributes:
        name: of the set, for the record.
        records: a labels.csv, see ``evaluate.labels.read_labels``; or None for text alone.
        side: of the split by patient; rows without a patient belong to ``train``.
        size: pages.
        photos: share of pages that a phone has photographed.
        seed: of choice, layout and photographs.
        text: a file with one prompt a line, for text alone.
    """

    name: str
    records: Path | None
    side: str = "train"
    size: int = 32
    photos: float = 0.5
    seed: int = 0
    text: Path | None = None


@dataclass(frozen=True)
class Prompt:
    """One conversation about one page: uint8 [H, W, 3] RGB (None for text alone), question and answer."""

    page: NDArray[np.uint8] | None
    question: str
    answer: str


def read_recipe(named: Path | str, size: int | None = None, seed: int | None = None) -> CalibrationRecipe:
    """Read a user's YAML file, by its path or its name in :data:`REGISTRY`, or take a labels.csv.

    Raises:
        UserError: the file is missing or says something impossible.
        UnknownNameError: it has a key that no set has, or there is no set of this name.
    """
    path = Path(named)
    if not path.is_file():
        own = {file.stem: file for file in REGISTRY.expanduser().glob("*.yaml")}
        if len(path.parts) > 1 or path.suffix:
            raise UserError(f"There is no {path}. Name a labels.csv, or a YAML file that describes a set.")
        if path.name not in own:
            raise UnknownNameError("calibration set", path.name, own)
        path = own[path.name]
    fields: dict[str, Any] = {"name": path.stem, "records": path}
    if path.suffix in (".yaml", ".yml"):
        fields = {"name": path.stem, "records": None, **_own(path)}
    given = {"size": size, "seed": seed}
    recipe = CalibrationRecipe(**{**fields, **{k: v for k, v in given.items() if v is not None}})
    if recipe.side not in SPLITS:
        raise UnknownNameError("split", recipe.side, SPLITS)
    if not 0 <= recipe.photos <= 1 or recipe.size < 1:
        raise UserError(f"{path}: photos is a share from 0 to 1, and size at least 1. Correct the file.")
    if (recipe.records is None) == (recipe.text is None):
        raise UserError(f"{path} names neither or both of records and text. Name one of them.")
    return recipe


def _own(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {error}. Correct the file.") from error
    kinds: Mapping[str, Any] = {
        **dict.fromkeys(("name", "records", "side", "text"), str),
        **dict.fromkeys(("size", "seed"), int),
        "photos": (int, float),
    }
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no keys. It has some of: {', '.join(kinds)}.")
    for key, value in raw.items():
        if key not in kinds:
            raise UnknownNameError(f"key in {path.name}", str(key), kinds)
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            raise UserError(f"{path}: {key} cannot be {value!r}. Correct the file.")
    return {k: path.parent / v if k in ("records", "text") else v for k, v in raw.items()}


def build(
    recipe: CalibrationRecipe, force_text: bool = False, tick: Callable[[int, int], None] = lambda *_: None
) -> tuple[list[Prompt], dict[str, Any]]:
    """Make the prompts of a set, and what is written down about it.

    Records are taken in turn from every combination of superclasses, so that rare diagnoses are seen.

    Args:
        recipe: of the set.
        force_text: take a set without pictures all the same.
        tick: called with pages made and in all.

    Returns:
        The prompts; and name, size, seed, photos, the labels' counts, and ``sha256`` over pages and texts.

    Raises:
        UserError: text alone without ``force_text``, or no usable record.
    """
    if recipe.records is None:
        prompts = _of_text(recipe, force_text)
        counts: collections.Counter[str] = collections.Counter(text=len(prompts))
    else:
        prompts, counts = _of_records(recipe, recipe.records, tick)
    digest = hashlib.sha256()
    for prompt in prompts:
        if prompt.page is not None:
            digest.update(repr(prompt.page.shape).encode() + prompt.page.tobytes())
        digest.update(f"\0{prompt.question}\0{prompt.answer}\0".encode())
    return prompts, {
        "name": recipe.name,
        "size": len(prompts),
        "seed": recipe.seed,
        "photos": recipe.photos,
        "side": recipe.side,
        "labels": dict(sorted(counts.items())),
        "sha256": digest.hexdigest(),
    }


def _of_text(recipe: CalibrationRecipe, force: bool) -> list[Prompt]:
    if not force:
        raise UserError(
            f"The calibration set {recipe.name} has no pictures. Calibrated on text, vision-language models "
            "have lost most of their accuracy. Name a labels.csv of ECGs, or add --force-text."
        )
    try:
        lines = (recipe.text or Path()).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{recipe.text} cannot be read: {error}. Name a UTF-8 text file.") from error
    texts = [line.strip() for line in lines if line.strip()][: recipe.size]
    if not texts:
        raise UserError(f"{recipe.text} has no lines. Write one prompt a line.")
    return [Prompt(None, text.replace(IMAGE_TOKEN, ""), "") for text in texts]


def _of_records(
    recipe: CalibrationRecipe, table: Path, tick: Callable[[int, int], None]
) -> tuple[list[Prompt], collections.Counter[str]]:
    rng = random.Random(f"calibration/{recipe.seed}")
    strata = collections.defaultdict(list)
    for row in read_labels(table):
        patient = row.get("patient_id")
        if (split(patient) if patient else "train") == recipe.side:
            strata[row["superclass"]].append(row)
    for rows in strata.values():
        rng.shuffle(rows)
    order = sorted(strata)
    prompts: list[Prompt] = []
    counts: collections.Counter[str] = collections.Counter()
    while len(prompts) < recipe.size and any(strata.values()):
        for name in order:
            if len(prompts) == recipe.size or not strata[name]:
                continue
            tick(len(prompts), recipe.size)
            prompt = _prompt(strata[name].pop(), table.parent, recipe.photos, rng)
            if prompt is not None:
                prompts.append(prompt)
                counts[name or "none"] += 1
    if not prompts:
        raise UserError(f"No usable record of the side {recipe.side} in {table}. Name another table or side.")
    return prompts, counts


def _prompt(row: dict[str, str], folder: Path, photos: float, rng: random.Random) -> Prompt | None:
    """Make one prompt; None if the record cannot be read. Every call draws the same number of lots."""
    draw = random.Random(rng.getrandbits(64))
    try:
        record = read_record(folder / row["record"])
    except RecordError:
        return None
    page = render(record, PaperStyle(layout=draw.choice(LAYOUTS), dpi=DPI))
    image = page.image
    if draw.random() < photos:
        image = photograph(image, page.px_per_mm, draw_photo_style(draw, draw.uniform(0.2, 1.0))).image
    facts = instruct.Facts(
        frozenset(code for code in row.get("codes", "").split(";") if code),
        frozenset(name for name in row["superclass"].split(";") if name),
        measure(record).rate_bpm,
    )
    closed = instruct.superclass_turns(facts, draw)
    report = instruct.report_turn(facts)
    turn = draw.choice(closed) if (closed and draw.random() < 0.5) or not report.answer else report
    return Prompt(image, turn.question, turn.answer)
