"""Recipes of the kind ``sft``: one stage of supervised fine-tuning, as LLaVA and PULSE have it.

The architecture stands in the recipe, so that its cost can be planned before anything is downloaded;
the weights of ``init`` must have exactly that architecture.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, get_type_hints

import torch
from transformers import CONFIG_MAPPING

from pulse_edge.contract import BOS_ID, EOS_ID, MAX_TILES, PAD_ID, TILE_SIZE, exact_div
from pulse_edge.errors import UnknownNameError, UserError
from pulse_edge.model.merge import MERGES
from pulse_edge.model.pulse import PulseConfig, PulseForConditionalGeneration
from pulse_edge.train.recipe import KINDS, fill, open_recipe

PRECISIONS: Final = ("bf16", "fp32")
SCHEDULES: Final = ("cosine", "linear", "constant_with_warmup")


@dataclass(frozen=True)
class SftSettings:
    """How to fine-tune.

    Attributes:
        epochs: passes over the conversations.
        batch: conversations in a step, over all processes.
        per_device: conversations that one process computes at a time, at most.
        learning_rate: peak.
        schedule: of the learning rate: cosine, linear or constant_with_warmup.
        warmup: share of the steps.
        weight_decay: of AdamW.
        max_length: tokens of a conversation, those of the image included; what is longer is cut.
        precision: bf16 (computation only; weights and AdamW's moments stay float32) or fp32.
        freeze_vision: train projector and language model only.
        gradient_checkpointing: keep one activation a layer and compute the rest again.
        fsdp: TrainingArguments' ``fsdp`` where several processes train, e.g. "full_shard auto_wrap";
            an empty text copies the model to every process.
        hold_out: share of the pictures whose conversations are not learned but evaluated.
        evaluate_every: steps between checkpoints, and between evaluations if any are held out.
    """

    epochs: int
    batch: int
    per_device: int
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    max_length: int
    precision: str
    freeze_vision: bool
    gradient_checkpointing: bool
    fsdp: str
    hold_out: float
    evaluate_every: int


@dataclass(frozen=True)
class SftShape:
    """The architecture: PulseConfig's fields, vision and text as transformers' configurations name theirs."""

    merge: str
    vision_feature_layer: int
    vision_feature_select_strategy: str
    vision: dict[str, Any]
    text: dict[str, Any]


@dataclass(frozen=True)
class SftRecipe:
    """A whole recipe; ``init`` is the checkpoint (folder or shipped name) that is fine-tuned."""

    name: str
    seed: int
    init: str
    model: SftShape
    train: SftSettings


def read_sft_recipe(name_or_path: str | Path) -> SftRecipe:
    """Read a shipped recipe by name, or a recipe file by path.

    Raises:
        UnknownNameError: no such recipe, or a key or value that no recipe has.
        UserError: the file is not YAML, is of another kind, a key is missing or a value unusable.
    """
    path, raw = open_recipe(name_or_path)
    if raw.pop("kind") != KINDS[1]:
        raise UserError(f"{path} is not a recipe for supervised fine-tuning (kind: {KINDS[1]}).")
    raw["train"] = settings = fill(SftSettings, raw.get("train"), path)
    raw["model"] = shape = fill(SftShape, raw.get("model"), path)
    _check_types(settings, path)
    for what, value, known in (
        ("precision", settings.precision, PRECISIONS),
        ("schedule", settings.schedule, SCHEDULES),
        ("merge", shape.merge, MERGES),
    ):
        if value not in known:
            raise UnknownNameError(f"{what} in {path.name}", str(value), known)
    return fill(SftRecipe, raw, path)


def _check_types(settings: SftSettings, path: Path) -> None:
    """YAML reads 2e-5 as text and true as a number's neighbour: say so before a cluster is rented."""
    kinds = get_type_hints(SftSettings)
    for field in fields(SftSettings):
        value, kind = getattr(settings, field.name), kinds[field.name]
        right = isinstance(value, (int, float) if kind is float else kind)
        if not right or (kind is not bool and isinstance(value, bool)):
            raise UserError(
                f"{path}: {field.name} is {value!r}, which is no {kind.__name__}. "
                "Correct it (YAML needs a point in 2.0e-5)."
            )
    positive = ("epochs", "batch", "per_device", "learning_rate", "max_length", "evaluate_every")
    wrong = [name for name in positive if not 0 < getattr(settings, name) < math.inf]
    wrong += [name for name in ("warmup", "hold_out") if not 0 <= getattr(settings, name) < 1]
    wrong += ["weight_decay"] if not 0 <= settings.weight_decay < math.inf else []
    if wrong:
        raise UserError(f"{path}: {', '.join(wrong)} out of range. Compare with the recipe pulse-7b.")


def model_config(shape: SftShape) -> PulseConfig:
    """Return the model's configuration.

    Raises:
        UnknownNameError: vision or text of a type that transformers does not have.
        UserError: the shapes are not those of a model.
    """
    for part in (shape.vision, shape.text):
        if part.get("model_type") not in CONFIG_MAPPING:
            raise UnknownNameError("model_type in the recipe", str(part.get("model_type")), CONFIG_MAPPING)
    special = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    tied = bool(shape.text.get("tie_word_embeddings", False))
    return PulseConfig.from_dict(
        {
            "merge": shape.merge,
            "vision_feature_layer": shape.vision_feature_layer,
            "vision_feature_select_strategy": shape.vision_feature_select_strategy,
            "projector_hidden_act": "gelu",
            "tie_word_embeddings": tied,
            "vision_config": {"image_size": TILE_SIZE, **shape.vision},
            "text_config": {**special, "tie_word_embeddings": tied, **shape.text},
        }
    )


def empty_model(shape: SftShape) -> PulseForConditionalGeneration:
    """Build the model on the meta device: every shape, and no weight.

    Raises:
        UserError: the shapes are not those of a model.
    """
    config = model_config(shape)
    try:
        with torch.device("meta"):
            return PulseForConditionalGeneration(config)
    except (TypeError, ValueError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(f"The recipe's shapes make no model: {' '.join(str(error).split())}") from error


def freeze(model: PulseForConditionalGeneration, vision: bool) -> None:
    """Leave training to what PULSE trains: projector and language model, and the tower unless ``vision``.

    What never runs is frozen as well, or several processes would wait for its gradient: the newline of
    the merge "flat", and CLIP's layers behind the one whose output is used.
    """
    model.requires_grad_(True)
    model.model.image_newline.requires_grad_(model.config.merge != "flat")
    used = model.config.vision_feature_layer
    used += model.config.vision_config.num_hidden_layers + 1 if used < 0 and _is_clip(model.config) else 0
    for name, parameter in model.model.vision_tower.named_parameters():
        layer = re.search(r"encoder\.layers\.(\d+)\.", name)
        runs = int(layer[1]) < used if layer else "post_layernorm" not in name
        parameter.requires_grad_(not vision and (runs or not _is_clip(model.config)))


def _is_clip(config: PulseConfig) -> bool:
    return bool(config.vision_config.model_type == "clip_vision_model")


def tokens_per_tile(config: PulseConfig) -> int:
    """Visual tokens that one 336-px tile becomes."""
    vision = config.vision_config
    patches = int(exact_div(vision.image_size, vision.patch_size)) ** 2
    return patches + int(_is_clip(config) and config.vision_feature_select_strategy == "full")


def tokens_per_page(config: PulseConfig) -> int:
    """Visual tokens of an ordinary page (0.5 < width / height < 2: five tiles), merged flat."""
    return tokens_per_tile(config) * MAX_TILES


def share_batch(batch: int, per_device: int, processes: int) -> tuple[int, int]:
    """Split the global batch: conversations at a time in one process, and how often a step repeats that.

    Raises:
        UserError: the batch cannot be divided by the processes; it is never changed silently.
    """
    if batch % processes:
        raise UserError(
            f"A batch of {batch} conversations cannot be divided by {processes} processes. "
            "Use a number of processes that divides it, or another batch in the recipe."
        )
    own = batch // processes
    at_a_time = max(n for n in range(1, min(per_device, own) + 1) if own % n == 0)
    return at_a_time, own // at_a_time
