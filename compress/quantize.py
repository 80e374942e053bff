"""A checkpoint's decoder becomes integers, layer by layer, with bounded memory, resumable after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pulse_edge.bundle import atomic_folder, sha256_file
from pulse_edge.compress.calibrate import Prompt, build, read_recipe
from pulse_edge.compress.form import Form
from pulse_edge.compress.journal import Journal
from pulse_edge.compress.methods import find_method
from pulse_edge.compress.walk import advance, enter, observe, round_layer, take_layer
from pulse_edge.contract import CHECKPOINT_CARD
from pulse_edge.errors import UserError
from pulse_edge.model.checkpoint import CARD_SCHEMA, load_model, read_card
from pulse_edge.model.preprocess import preprocess
from pulse_edge.model.prompt import build_prompt, encode_prompt
from pulse_edge.model.pulse import PulseForConditionalGeneration
from pulse_edge.model.quantized import quantized_names
from pulse_edge.model.tokenizer import TOKENIZER_CONFIG, Tokenizer
from pulse_edge.model.weights import open_weights

Tick = Callable[[str, int, int], None]


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
    """

    form: Form
    method: str = "gptq"
    calibration: Path | str | None = None
    size: int | None = None
    seed: int | None = None
    force_text: bool = False


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
    if quantized_names(open_weights(checkpoint)):
        raise UserError(f"{checkpoint} is quantised already. Quantise the checkpoint that it came from.")
    if method.calibrated and settings.calibration is None:
        raise UserError(
            f"--method {settings.method} needs ECGs to calibrate on. Add --calibration LABELS_CSV, or use "
            "--method rtn, which needs none."
        )
    prompts, facts = _calibration(settings, method.calibrated, tick)
    weights = {path.name: sha256_file(path) for path in sorted(checkpoint.glob("*.safetensors"))}
    job = {
        "weights": weights,
        "form": asdict(settings.form),
        "method": settings.method,
        "calibration": facts,
    }
    journal = Journal(output.with_name(output.name + ".quantizing"), job)
    model = load_model(checkpoint)
    _layers(model, checkpoint, journal, settings, prompts, tick)
    count = len(model.model.language_model.layers)
    if not journal.done(count):
        inside = {name for k in range(count) for name in _names(model, k)}
        rest = {name: tensor for name, tensor in _stored(model).items() if name not in inside}
        journal.finish(count, rest, {"kept": []})
    summary = {
        "form": settings.form.name,
        "method": settings.method,
        "calibration": facts,
        "kept": [name for k in range(count) for name in journal.facts(k)["kept"]],
    }
    card = _card(checkpoint, weights, summary)
    with atomic_folder(output) as work:
        _assemble(work, checkpoint, model, journal, count + 1, card)
        card["metrics"] = [*card["metrics"], gate(work)]
        _write_card(work, card)
    shutil.rmtree(journal.folder)
    return {"quantization": summary, "metrics": card["metrics"]}


def _calibration(
    settings: Settings, calibrated: bool, tick: Tick
) -> tuple[list[Prompt], dict[str, Any] | None]:
    if not calibrated or settings.calibration is None:
        return [], None
    recipe = read_recipe(settings.calibration, settings.size, settings.seed)
    return build(recipe, settings.force_text, lambda done, total: tick("calibration pages", done, total))


def _layers(
    model: PulseForConditionalGeneration,
    checkpoint: Path,
    journal: Journal,
    settings: Settings,
    prompts: list[Prompt],
    tick: Tick,
) -> None:
    """Round every layer that is not done yet, each on what the rounded ones before it make of the prompts."""
    method = find_method(settings.method)
    count = len(model.model.language_model.layers)
    first = next((k for k in range(count) if not journal.done(k)), count)
    hidden: list[Tensor] = []
    if prompts and first < count:
        kept = journal.hidden(first)
        # The first layer's inputs are made anew; a later layer's were kept when the one before was done.
        hidden = list(enter(model, _encoded(model, prompts, checkpoint))) if kept is None else kept
    for k in range(first, count):
        tick("layers", k, count)
        layer = take_layer(model, k)
        grams = observe(model, layer, hidden) if prompts else None
        done, unfit = round_layer(layer, grams, method, settings.form)
        if prompts:
            hidden = list(advance(model, layer, hidden))
            journal.keep_hidden(k + 1, hidden)
        names = _names(model, k)
        dtype = model.get_input_embeddings().weight.dtype
        tensors: dict[str, Tensor] = {}
        for name, inner in names.items():
            linear = inner.removesuffix(".weight")
            if linear in done:
                arrays = done[linear].stored(name)
                tensors |= {key: torch.from_numpy(array) for key, array in arrays.items()}
            else:
                tensors[name] = layer.state_dict()[inner].to(dtype)
        journal.finish(k, tensors, {"kept": [f"layers.{k}.{name}" for name in unfit]})
        journal.drop_hidden(k)
    tick("layers", count, count)


def _encoded(
    model: PulseForConditionalGeneration, prompts: list[Prompt], checkpoint: Path
) -> list[tuple[list[int], Tensor, tuple[int, int]]]:
    tokenizer = Tokenizer.from_folder(checkpoint)
    context = model.config.text_config.max_position_embeddings
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


def _names(model: PulseForConditionalGeneration, number: int) -> dict[str, str]:
    """Return the checkpoint's names of a layer's weights, and those inside the layer."""
    layer: nn.Module = model.model.language_model.layers[number]
    prefix = next(name for name, module in model.named_modules() if module is layer)
    return {f"{prefix}.{inner}": inner for inner, _ in layer.named_parameters()}


def _stored(model: PulseForConditionalGeneration) -> dict[str, Tensor]:
    """Return what a checkpoint of this model holds: a tied head once."""
    state: dict[str, Tensor] = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    return state


def _assemble(
    work: Path,
    checkpoint: Path,
    model: PulseForConditionalGeneration,
    journal: Journal,
    parts: int,
    card: dict[str, Any],
) -> None:
    """Lay the parts out as a Hugging Face checkpoint with an index."""
    where: dict[str, str] = {}
    size = 0
    for k in range(parts):
        file = f"model-{k + 1:05d}-of-{parts:05d}.safetensors"
        with safe_open(journal.part(k), framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        save_file(tensors, work / file, {"format": "pt"})
        where |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (work / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True), "utf-8")
    model.config.save_pretrained(work)
    for name in ("tokenizer.model", TOKENIZER_CONFIG):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, work / name)
    _write_card(work, card)
    for file_ in work.iterdir():
        file_.chmod(0o644)  # safetensors lets only the owner read


def _card(checkpoint: Path, weights: dict[str, str], summary: dict[str, Any]) -> dict[str, Any]:
    parent = read_card(checkpoint)
    form, method, set_ = summary["form"], summary["method"], summary["calibration"]
    on = f" on {set_['name']} ({set_['size']} pages, sha256 {set_['sha256'][:16]})" if set_ else ""
    return {
        **parent,
        "parent": {"name": parent["name"], "weights": weights, "recipe": parent["recipe"]},
        "recipe": f"quantize {form}, {method}{on}",
        "quantization": summary,
    }


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    text = json.dumps({**card, "schema": CARD_SCHEMA}, indent=2, ensure_ascii=False) + "\n"
    (folder / CHECKPOINT_CARD).write_text(text, "utf-8")
