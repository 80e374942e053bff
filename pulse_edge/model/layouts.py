"""What differs between checkpoint layouts: names of weights and names in ``config.json``.

Three layouts hold the same model: the released LLaVA layout, and Hugging Face's as transformers 4 and 5
write it (their prefixes differ, and each silently ignores the other's weights). All are read here, by
reducing every name to one canonical form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from pulse_edge.contract import GRID_PINPOINTS, MAX_TILES
from pulse_edge.errors import CheckpointError
from pulse_edge.model.merge import KEEP_BY, MERGES

Shapes = Mapping[str, tuple[int, ...]]

# Canonical names that the code asks for.
HEAD: Final = "head.weight"
TABLE: Final = "text.embed_tokens.weight"
NEWLINE: Final = "newline"

# (start of a name, canonical start); the first match counts.
_PREFIXES: Final = tuple(
    (re.compile(pattern), canonical)
    for pattern, canonical in (
        (r"(?:model\.)?(?:vision_tower\.)+(?:vision_model\.)?", "vision."),
        (r"model\.mm_projector\.0\.", "projector.linear_1."),
        (r"model\.mm_projector\.2\.", "projector.linear_2."),
        (r"(?:model\.)?multi_modal_projector\.", "projector."),
        (r"(?:model\.)?image_newline$", "newline"),
        (r"(?:language_model\.)?lm_head\.", "head."),
        (r"(?:model\.)?language_model\.(?:model\.)?", "text."),
        (r"model\.", "text."),
    )
)
# Constants that older versions stored beside the weights; they are computed anew.
_COMPUTED: Final = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")

# Of LLaVA's flat config.json, what belongs to the language model.
_TEXT_FIELDS: Final = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "initializer_range",
    "attention_bias", "attention_dropout", "mlp_bias", "rope_theta", "rope_scaling", "tie_word_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
# LLaVA's config says nothing about the tower: openai/clip-vit-large-patch14-336 and its relatives. What
# the weights' shapes cannot tell is the same for all of them.
_CLIP: Final = {"model_type": "clip_vision_model", "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_CLIP_HEAD: Final = 64  # width of an attention head
_SELECT: Final = {"patch": "default", "cls_patch": "full"}


def canonical(name: str) -> str:
    """Return the layout-independent name of a weight.

    >>> canonical("model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias")
    'vision.pre_layrnorm.bias'
    """
    for pattern, start in _PREFIXES:
        found = pattern.match(name)
        if found:
            return start + name[found.end() :]
    return name


def computed(name: str) -> bool:
    """Say whether a weight is a constant that the model computes itself."""
    return bool(_COMPUTED.search(name))


def pulse_config(raw: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """Translate a ``config.json`` of any layout into PulseConfig's fields.

    Args:
        raw: the parsed file.
        shapes: of the weights, by canonical name.

    Raises:
        CheckpointError: if the layout is unknown, or the model is not one that PULSE's code runs.
    """
    kind = raw.get("model_type")
    if kind in ("llava_llama", "llava"):
        if "text_config" in raw:
            raise CheckpointError(
                "This is a Hugging Face LLaVA-1.5 checkpoint, which has no tiles. "
                "Use a PULSE or LLaVA-1.6 checkpoint."
            )
        config = _from_llava(raw, shapes)
    elif kind in ("pulse", "llava_next"):
        config = _from_hf(raw)
    else:
        raise CheckpointError(
            f"config.json says model_type {kind!r}; pulse-edge reads 'llava_llama' (PULSE as released), "
            "'llava_next' and 'pulse'. Use one of those checkpoints."
        )
    if config["merge"] not in MERGES:
        raise _unsupported("the merge type", config["merge"], MERGES)
    pinpoints = config.get("image_grid_pinpoints")
    # transformers writes (h, w); the set is symmetric, so order is all that differs.
    if pinpoints is not None and {tuple(pair) for pair in pinpoints} != set(GRID_PINPOINTS):
        raise _unsupported("the grids", pinpoints, GRID_PINPOINTS)
    config["image_grid_pinpoints"] = [list(pair) for pair in GRID_PINPOINTS]
    # Versions of transformers look at different levels, and some say "tied" beside an own head: what the
    # weights say holds.
    text = config["text_config"]
    claimed = config.get("tie_word_embeddings") or text.get("tie_word_embeddings")
    config["tie_word_embeddings"] = text["tie_word_embeddings"] = bool(claimed) and HEAD not in shapes
    return config


def _from_llava(raw: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    for field, known in (
        ("mm_projector_type", ("mlp2x_gelu",)),
        ("image_aspect_ratio", ("anyres",)),
        ("mm_vision_select_feature", tuple(_SELECT)),
        ("mm_use_im_start_end", (False, None)),
    ):
        if raw.get(field) not in known:
            raise _unsupported(field, raw.get(field), known)
    return {
        # LLaVA's own default where the field is missing.
        "merge": raw.get("mm_patch_merge_type", "flat"),
        "image_grid_pinpoints": raw.get("image_grid_pinpoints"),
        "vision_feature_layer": raw.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": _SELECT[raw["mm_vision_select_feature"]],
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        "text_config": {"model_type": "llama", **{name: raw[name] for name in _TEXT_FIELDS if name in raw}},
        "vision_config": _clip_config(shapes),
    }


def _clip_config(shapes: Shapes) -> dict[str, Any]:
    """Read the tower's shape off its weights."""
    try:
        hidden, channels, patch, _ = shapes["vision.embeddings.patch_embedding.weight"]
        positions, _ = shapes["vision.embeddings.position_embedding.weight"]
        ffn, _ = shapes["vision.encoder.layers.0.mlp.fc1.weight"]
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            "The checkpoint holds no CLIP vision tower. PULSE carries its own, fine-tuned tower, and stock "
            "CLIP weights give wrong answers. Use the complete checkpoint."
        ) from error
    layers = {name.split(".")[3] for name in shapes if name.startswith("vision.encoder.layers.")}
    return {
        **_CLIP,
        "hidden_size": hidden,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": math.isqrt(positions - 1) * patch,  # one position is the class token's
        "num_hidden_layers": len(layers),
        "intermediate_size": ffn,
        "num_attention_heads": max(1, hidden // _CLIP_HEAD),
    }


def _from_hf(raw: Mapping[str, Any]) -> dict[str, Any]:
    config = {name: value for name, value in raw.items() if name != "model_type"}
    if raw["model_type"] == "llava_next":
        config["merge"] = "spatial_unpad"  # all that transformers' LlavaNext does
    config.setdefault("merge", "flat")
    keep = config.get("keep_tokens")
    if keep is not None and (not isinstance(keep, int) or keep < 1 or keep % MAX_TILES):
        raise _unsupported("keep_tokens", keep, f"multiples of {MAX_TILES}")
    if config.get("keep_by", KEEP_BY[0]) not in KEEP_BY:
        raise _unsupported("keep_by", config["keep_by"], KEEP_BY)
    if keep is not None and config["merge"] != "flat":
        raise _unsupported("keep_tokens", keep, "None with this merge")
    text = dict(config.get("text_config") or {})
    if text.get("spread") is not None and not _spreads(text["spread"], keep):
        raise _unsupported("text_config.spread", text["spread"], "[first, keep_tokens, of how many]")
    rope = text.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        # transformers 5 nests what transformers 4 reads from two fields.
        text.setdefault("rope_theta", rope["rope_theta"])
        if rope.get("rope_type", "default") != "default":
            text.setdefault("rope_scaling", {k: v for k, v in rope.items() if k != "rope_theta"})
    config["text_config"] = text
    return config


def _spreads(spread: object, keep: int | None) -> bool:
    """Whether a list says where ``keep`` visual tokens stand; see ``places.positions``."""
    if not isinstance(spread, list) or len(spread) != 3 or not all(type(n) is int for n in spread):
        return False
    first, kept, every = spread
    return bool(first >= 0 and kept == keep and kept <= every)


def _unsupported(what: str, value: object, known: object) -> CheckpointError:
    return CheckpointError(
        f"config.json sets {what} to {value!r}; pulse-edge runs {known!r} only, as PULSE does. "
        "Use a PULSE or LLaVA-1.6 (anyres) checkpoint."
    )
