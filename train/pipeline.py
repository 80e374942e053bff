"""From a recipe and a labels.csv to a checkpoint with its card."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from pulse_edge.bundle import sha256_file, write_atomic
from pulse_edge.ecg.instruct import CLOSED_QUESTIONS, SUPERCLASS_PHRASES
from pulse_edge.ecg.split import Split
from pulse_edge.errors import UserError
from pulse_edge.model.checkpoint import load_model, read_card, resolve_model, save_model
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.tokenizer import Tokenizer
from pulse_edge.train.build import build_model, grow
from pulse_edge.train.dataset import DefaultPages, diagnoses
from pulse_edge.train.examples import Example, fit_beat_basis, read_examples, write_split
from pulse_edge.train.morph import Morphs
from pulse_edge.train.objective import TrainingObjective
from pulse_edge.train.recipe import Recipe
from pulse_edge.train.signal import DILATIONS, STEPS, calibrated, cross_fitted, judged
from pulse_edge.train.sources import SOURCES, detect
from pulse_edge.train.tokenizer import train_tokenizer
from pulse_edge.train.trainer import answer_ids, fit, validate

INTENDED_USE = "Research and software testing. Not a medical device; not for diagnosis or treatment."


def train_checkpoint(
    recipe: Recipe, data: Path, output: Path, pages: int | None, workers: int, init: str | None = None
) -> dict[str, Any]:
    """Do what ``pulse_edge.train.run`` promises, once torch is known to be there."""
    if pages is not None:
        recipe = replace(recipe, train={k: replace(v, pages=pages) for k, v in recipe.train.items()})
    if init is None and set(recipe.train) == {"tune"}:
        raise UserError(f"{recipe.file} tunes a model that is there. Name it with --init.")
    console = Console(stderr=True)
    learn, choose, held_out = (_read(data, side, console) for side in ("train", "validation", "test"))
    work = output.with_name(output.name + ".training")
    work.mkdir(parents=True, exist_ok=True)
    split_hash = write_split(work / "split.json", {"train": learn, "validation": choose, "test": held_out})
    start = None if init is None else resolve_model(init)
    if start is not None:
        for file in start.glob("tokenizer*"):
            shutil.copyfile(file, work / file.name)
    elif not (work / "tokenizer.model").is_file():
        train_tokenizer(work, recipe.model.vocab_size)
    tokenizer = Tokenizer.from_folder(work)
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, tokenizer.vocab_size)
    if start is not None:
        grow(model, load_model(start, "float32"))
    beliefs, morphs = _taught(learn, recipe, work, console)
    basis = fit_beat_basis(learn)
    history = fit(model, recipe, tokenizer, learn, choose, basis, work, workers, beliefs, morphs)
    metrics = [
        {"stage": "fp32", "set": f"{side} patients of {data.name}", **_measure(model, examples, tokenizer)}
        for side, examples in (("validation", choose), ("test", held_out))
    ]
    # Half precision is what ships: the weights are read back as float32, and parity is measured on them.
    save_model(model.half(), tokenizer, output, card(recipe, data, split_hash, learn, metrics, start))
    return {
        "checkpoint": str(output),
        "parameters": sum(p.numel() for p in model.parameters()),
        "history": history,
        "metrics": metrics,
    }


def _read(data: Path, side: Split, console: Console) -> list[Example]:
    examples, left_out = read_examples(data, (side,))
    console.print(f"{side}: {len(examples)} records; left out: {left_out}")
    if side == "train":
        return examples
    scored = [example for example in examples if example.facts.superclasses]
    if not scored:
        raise UserError(
            f"No {side} record of {data} has a superclass, so a model cannot be scored on it. "
            "Train on PTB-XL, or on a table that holds it too."
        )
    return scored


def _taught(
    learn: list[Example], recipe: Recipe, work: Path, console: Console
) -> tuple[NDArray[np.float32], tuple[Morphs, NDArray[np.float32]] | None]:
    """What the signal teacher says of every training record, and of as many morphs as the recipe asks for."""
    targets = np.stack([diagnoses(example.facts) for example in learn])

    def on_records(tick: Callable[[], None]) -> NDArray[np.float32]:
        return cross_fitted(learn, targets, recipe.seed, tick)

    unseen = _kept(work / "beliefs.npy", len(learn), "signal teacher", STEPS, on_records, console)
    beliefs = calibrated(unseen, targets, unseen)
    count = max(int(settings.pages * settings.morphs) for settings in recipe.train.values())
    if not count:
        return beliefs, None
    morphs = Morphs([example.record for example in learn], recipe.seed)

    def on_morphs(tick: Callable[[], None]) -> NDArray[np.float32]:
        return judged(learn, targets, [morphs.record(k) for k in range(count)], recipe.seed, tick)

    name = "signal teacher on morphs"
    said = _kept(work / "morphs.npy", count, name, len(DILATIONS), on_morphs, console)
    return beliefs, (morphs, calibrated(unseen, targets, said))


def _kept(
    path: Path,
    count: int,
    name: str,
    steps: int,
    ask: Callable[[Callable[[], None]], NDArray[np.float32]],
    console: Console,
) -> NDArray[np.float32]:
    """The teacher's ``count`` rows of logits, asked for once and kept in ``path`` for a resumed run."""
    if path.is_file():
        beliefs: NDArray[np.float32] = np.load(path)
        if len(beliefs) == count:
            return beliefs
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(name, total=steps)
        beliefs = ask(lambda: progress.advance(task))
    stream = io.BytesIO()
    np.save(stream, beliefs)
    write_atomic(path, stream.getvalue())
    return beliefs


def _measure(
    model: PulseForConditionalGeneration, examples: list[Example], tokenizer: Tokenizer
) -> dict[str, Any]:
    pages = DefaultPages(examples, tokenizer, model.config.vision_config.tokens_per_tile)
    objective = TrainingObjective(model, 1, answer_ids(tokenizer))
    objective.set_stage("speak")
    auroc = validate(objective, pages)
    return {"n": len(examples), "patients": len({e.patient for e in examples}), "auroc": auroc}


def card(
    recipe: Recipe,
    data: Path,
    split_hash: str,
    learn: list[Example],
    metrics: list[dict[str, Any]],
    start: Path | None = None,
) -> dict[str, Any]:
    """Return the fields of ``pulse.json`` of a model that was trained from scratch or from ``start``."""
    source = SOURCES[detect(data)].card
    return {
        "name": recipe.name,
        "parent": None
        if start is None
        else {
            "name": read_card(start)["name"],
            "sha256": sha256_file(start / "model.safetensors"),
            "recipe": read_card(start)["recipe"],
        },
        "recipe": f"{recipe.file}, seed {recipe.seed}, "
        + ", ".join(f"{stage}: {settings.pages} pages" for stage, settings in recipe.train.items()),
        "data": {
            "set": source["set"],
            "records": len(learn),
            "patients": len({e.patient for e in learn}),
            "split": source["split"],
            "split_sha256": split_hash,
        },
        "metrics": metrics,
        "labels": {name: {"phrase": phrase} for name, phrase in SUPERCLASS_PHRASES.items()},
        "scoring": {"question": CLOSED_QUESTIONS[0], "positive": "Yes", "negative": "No"},
        "licences": [
            {"what": "weights", "licence": "Apache-2.0"},
            {"what": f"training data: {source['set']}", "licence": source["licence"]},
        ],
        "intended_use": INTENDED_USE,
    }
