"""A checkpoint's decoder becomes integers, layer by layer, with bounded memory, resumable after a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from pulse_edge.bundle import atomic_folder, sha256_file
from pulse_edge.compress import rtn
from pulse_edge.compress.calibrate import Prompt, build, read_recipe
from pulse_edge.compress.form import Form
from pulse_edge.compress.journal import Journal
from pulse_edge.compress.methods import find_method
from pulse_edge.compress.walk import advance, enter, observe, round_layer
from pulse_edge.contract import CHECKPOINT_CARD
from pulse_edge.errors import UnknownNameError, UserError
from pulse_edge.model.checkpoint import CARD_SCHEMA, read_card, write_card_field
from pulse_edge.model.layouts import HEAD, TABLE
from pulse_edge.model.pieces import Pieces
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.quantized import QuantizedWeight
from pulse_edge.model.tokenizer import TOKENIZER_CONFIG, Tokenizer

Tick = Callable[[str, int, int], None]
TABLE_BITS: Final = (16, 8)  # of embedding table and head: fewer cost more accuracy than memory
_ROWS: Final = 4096  # of a table that are rounded at a time


@dataclass(frozen=True)
class Settings:
    """What a quantisation does.

    Attributes:
        form: of the integers.
        method: key of ``methods.METHODS``.
        calibration: a labels.csv, a YAML file or a registered name; None for methods without data.
        size: pages of the calibration set; None as the set says.
        seed: of the calibration set; None as the set says.
        force_text: take a set without pictures all the same.
        forms: of single layers (``layers.0.mlp.up_proj``) instead of ``form``; None leaves one as it is.
        embedding: bits of the embedding table: 16 as it is, or 8 with a scale for every token.
        head: bits of the head, likewise; of a tied model both are one table.
    """

    form: Form
    method: str = "gptq"
    calibration: Path | str | None = None
    size: int | None = None
    seed: int | None = None
    force_text: bool = False
    forms: Mapping[str, Form | None] = field(default_factory=dict)
    embedding: int = 16
    head: int = 16

    def __post_init__(self) -> None:
        for option, bits in (("--embedding", self.embedding), ("--lm-head", self.head)):
            if bits not in TABLE_BITS:
                raise UserError(f"{option} {bits} is not possible. Use 16 or 8.")

    def inside(self, number: int) -> Callable[[str], Form | None]:
        """Return what gives the form of a linear layer by its name inside decoder layer ``number``."""
        return lambda name: self.forms.get(f"layers.{number}.{name}", self.form)


def write_quantized(
    checkpoint: Path,
    output: Path,
    settings: Settings,
    gate: Callable[[Path], dict[str, Any]],
    tick: Tick = lambda what, done, total: None,
) -> dict[str, Any]:
    """Write a checkpoint whose decoder layers stand as integers.

    Args:
        checkpoint: its folder; not quantised yet.
        output: a new folder; an interrupted call leaves ``<output>.quantizing`` and is resumed from it.
        settings: what to do.
        gate: given the finished folder before it gets its name; returns the card's row of metrics, or
            raises if the accuracy is not kept.
        tick: called with the name of the stage, and parts done and in all.

    Returns:
        The card's fields ``quantization`` and ``metrics``.

    Raises:
        UserError: settings that cannot be used with this checkpoint.
        PulseEdgeError: whatever ``gate`` raises; ``output`` is not there then.
    """
    method = find_method(settings.method)
    pieces = Pieces(checkpoint)
    _usable(pieces, settings, method.calibrated)
    prompts, facts = _calibration(settings, method.calibrated, tick)
    weights = {path.name: sha256_file(path) for path in pieces.shards.files}
    forms = {name: form.name if form else "float" for name, form in sorted(settings.forms.items())}
    tables = {"embedding": settings.embedding, "head": settings.head}
    job = {"weights": weights, "form": asdict(settings.form), "method": settings.method, "calibration": facts,
           "forms": forms, **tables}  # fmt: skip
    journal = Journal(output.with_name(output.name + ".quantizing"), job)
    _layers(pieces, journal, settings, prompts, tick)
    parts = _rest(pieces, journal, settings)
    summary = {
        "form": settings.form.name,
        "method": settings.method,
        "calibration": facts,
        "kept": [name for k in range(pieces.layers) for name in journal.facts(k)["kept"]],
        "forms": forms,
        **tables,
        "tied": bool(pieces.model.config.tie_word_embeddings),
    }
    card = _card(checkpoint, weights, summary)
    with atomic_folder(output) as work:
        _assemble(work, pieces, journal, parts, card)
        metrics = [*card["metrics"], gate(work)]  # which also writes what belongs beside it
        write_card_field(work, "metrics", metrics)
    shutil.rmtree(journal.folder)
    return {"quantization": summary, "metrics": metrics}


def _usable(pieces: Pieces, settings: Settings, calibrated: bool) -> None:
    """Refuse settings that do not go with a checkpoint or each other."""
    if pieces.shards.forms:
        raise UserError(f"{pieces.folder} is quantised already. Quantise the checkpoint that it came from.")
    if calibrated and settings.calibration is None:
        raise UserError(
            f"--method {settings.method} needs ECGs to calibrate on. Add --calibration LABELS_CSV, or use "
            "--method rtn, which needs none."
        )
    if pieces.model.config.tie_word_embeddings and settings.embedding != settings.head:
        raise UserError(f"The head of {pieces.folder} is its embedding table. Give both the same bits.")
    known = {
        f"layers.{k}.{name.removesuffix('.weight')}"
        for k in range(pieces.layers)
        for name in pieces.inside(k)
    }
    for name in settings.forms:
        if name not in known:
            raise UnknownNameError("layer in the plan", name, known)


def _calibration(
    settings: Settings, calibrated: bool, tick: Tick
) -> tuple[list[Prompt], dict[str, Any] | None]:
    if not calibrated or settings.calibration is None:
        return [], None
    recipe = read_recipe(settings.calibration, settings.size, settings.seed)
    return build(recipe, settings.force_text, lambda done, total: tick("calibration pages", done, total))


def _layers(pieces: Pieces, journal: Journal, settings: Settings, prompts: list[Prompt], tick: Tick) -> None:
    """Round every layer that is not done yet, each on what the rounded ones before it make of the prompts."""
    method = find_method(settings.method)
    count, dtype = pieces.layers, pieces.dtype
    first = next((k for k in range(count) if not journal.done(k)), count)
    hidden: list[Tensor] = []
    if prompts and first < count:
        kept = journal.hidden(first)
        # The first layer's inputs are made anew; a later layer's were kept when the one before was done.
        hidden = list(enter(pieces, encoded(pieces, prompts))) if kept is None else kept
    for k in range(first, count):
        tick("layers", k, count)
        layer = pieces.layer(k)
        grams = observe(pieces.model, layer, hidden) if prompts else None
        done, unfit = round_layer(layer, grams, method, settings.inside(k))
        if prompts:
            for at, out in enumerate(advance(pieces.model, layer, hidden)):
                hidden[at] = out
            journal.keep_hidden(k + 1, hidden)
        tensors: dict[str, Tensor] = {}
        state = layer.state_dict()
        own_names = {name: own for own, name in pieces.names.items()}
        for inner, name in pieces.inside(k).items():
            linear = inner.removesuffix(".weight")
            if linear in done:
                tensors |= _integers(own_names[name], done[linear])
            else:
                tensors[own_names[name]] = state[inner].to(dtype)
        journal.finish(k, tensors, {"kept": [f"layers.{k}.{name}" for name in unfit]})
        journal.drop_hidden(k)
    tick("layers", count, count)


def _integers(name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    return {key: torch.from_numpy(array) for key, array in weight.stored(name).items()}


def _rest(pieces: Pieces, journal: Journal, settings: Settings) -> int:
    """Write what is in no decoder layer: the pictures' part, then norm, table and head; return all parts."""
    layers = {name for k in range(pieces.layers) for name in pieces.inside(k).values()}
    bits = {TABLE: settings.embedding, HEAD: settings.head}
    for number, pictures in enumerate((True, False), pieces.layers):
        if journal.done(number):
            continue
        tensors: dict[str, Tensor] = {}
        for own, name in pieces.names.items():
            if name in layers or pictures != name.startswith(("vision.", "projector.")):
                continue
            if bits.get(name) == 8:
                tensors |= _integers(own, _round_table(pieces, name))
            else:
                tensors[own] = pieces.tensor(name)
        journal.finish(number, tensors, {"kept": []})
    return pieces.layers + 2


def _round_table(pieces: Pieces, name: str) -> QuantizedWeight:
    """Round a table to 8 bits with a scale for every row, some rows at a time."""
    count, form = pieces.shards.shape(name)[0], Form(8, None)
    parts = [
        rtn.quantize(pieces.tensor(name, start, min(start + _ROWS, count)).float(), None, form)
        for start in range(0, count, _ROWS)
    ]
    return QuantizedWeight(
        8, np.concatenate([part.integers for part in parts]), np.concatenate([part.scale for part in parts])
    )


def encoded(pieces: Pieces, prompts: list[Prompt]) -> list[tuple[list[int], Tensor, tuple[int, int]]]:
    """Return what ``walk.enter`` takes of prompts: token ids, pixel values, size of the picture."""
    tokenizer = Tokenizer.from_folder(pieces.folder)
    context = pieces.model.config.text_config.max_position_embeddings
    encoded = []
    for prompt in prompts:
        has_page = prompt.page is not None
        turns = [(prompt.question, prompt.answer or None)]
        ids = encode_prompt(build_prompt(turns, image=has_page), tokenizer)
        if prompt.page is None:
            encoded.append((ids[:context], torch.empty(0), (0, 0)))
        else:
            size = (prompt.page.shape[1], prompt.page.shape[0])
            encoded.append((ids, torch.from_numpy(preprocess(prompt.page)), size))
    return encoded


def _assemble(work: Path, pieces: Pieces, journal: Journal, parts: int, card: dict[str, Any]) -> None:
    """Lay the parts out as a Hugging Face checkpoint with an index."""
    where: dict[str, str] = {}
    size = 0
    for k in range(parts):
        file = work / f"model-{k + 1:05d}-of-{parts:05d}.safetensors"
        journal.part(k).chmod(0o644)  # safetensors lets only the owner read
        _place(journal.part(k), file)
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
        where |= dict.fromkeys(names, file.name)
        size += file.stat().st_size
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (work / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True), "utf-8")
    pieces.model.config.save_pretrained(work)
    for name in ("tokenizer.model", TOKENIZER_CONFIG):
        if (pieces.folder / name).is_file():
            shutil.copyfile(pieces.folder / name, work / name)
    _write_card(work, card)


def _place(part: Path, target: Path) -> None:
    """Give a part its place in the checkpoint: a second name, so that the part outlives a refusal."""
    try:
        os.link(part, target)
    except OSError:  # a file system without them
        shutil.copyfile(part, target)


def _card(checkpoint: Path, weights: dict[str, str], summary: dict[str, Any]) -> dict[str, Any]:
    parent = read_card(checkpoint)
    form, method, set_ = summary["form"], summary["method"], summary["calibration"]
    on = f" on {set_['name']} ({set_['size']} pages, sha256 {set_['sha256'][:16]})" if set_ else ""
    return {
        **parent,
        "parent": {"name": parent["name"], "weights": weights, "recipe": parent["recipe"]},
        "recipe": f"quantize {form}, {method}{on}",
        "quantization": summary,
        "calibration": None,  # the parent's is of other weights
    }


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    text = json.dumps({**card, "schema": CARD_SCHEMA}, indent=2, ensure_ascii=False) + "\n"
    (folder / CHECKPOINT_CARD).write_text(text, "utf-8")
