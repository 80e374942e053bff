"""What a plan must know of a model: its sizes, read from configuration and headers, without a weight.

Covered are Llama's and Qwen2's decoders, CLIP's tower and the convolutional one of pulse-nano. Counts are
exact: the tests hold them against the models that torch builds of the same configurations.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pulse_edge.contract import MAX_TILES, TILE_SIZE
from pulse_edge.errors import CheckpointError
from pulse_edge.model.layouts import canonical, pulse_config
from pulse_edge.model.quantized import INTEGERS

_HEADER_LIMIT: Final = 100_000_000  # safetensors' own bound of a header, bytes


@dataclass(frozen=True)
class Tower:
    """A vision tower with its projector.

    Attributes:
        parameters: of the tower as stored.
        run_parameters: of what runs; CLIP's layers behind the one that is read do not.
        projector: parameters of the projector.
        tokens: visual tokens that a tile becomes.
        flops: operations of tower and projector on one tile, a multiplication and an addition counted as two.
        live: numbers held at one time while a tile is read, attention's scores included.
    """

    parameters: int
    run_parameters: int
    projector: int
    tokens: int
    flops: int
    live: int


@dataclass(frozen=True)
class ModelShape:
    """A vision-language model; ``tower`` is None for a language model alone.

    Attributes:
        layers, hidden, heads, kv_heads, head_dim, ffn, vocab: of the decoder.
        tied: the head is the embedding table.
        biases: numbers a layer's biases hold.
        context: longest sequence, image included.
        keep: visual tokens that are kept of a page; None for all.
        integers: int4 or int8 where the checkpoint itself holds the matrices so, else None.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool
    context: int
    biases: int = 0
    tower: Tower | None = None
    keep: int | None = None
    integers: str | None = None

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """The matrices [K, N] of one decoder layer."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        h, f = self.hidden, self.ffn
        return ((h, wide), (h, narrow), (h, narrow), (wide, h), (h, f), (h, f), (f, h))

    @property
    def linear_parameters(self) -> int:
        """Weights of all matrices of all decoder layers."""
        return self.layers * sum(k * n for k, n in self.linears)

    @property
    def table(self) -> int:
        """Numbers in the embedding table; the head has as many, of its own unless ``tied``."""
        return self.vocab * self.hidden

    @property
    def small(self) -> int:
        """Norms and biases of the decoder, which are never rounded to integers."""
        return self.layers * (2 * self.hidden + self.biases) + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters as a checkpoint holds them, the newline of the merge included."""
        own = self.linear_parameters + self.table * (1 if self.tied else 2) + self.small
        return own + (self.tower.parameters + self.tower.projector + self.hidden if self.tower else 0)

    @property
    def kv_per_token(self) -> int:
        """Numbers that the key-value cache holds for one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def read_shape(checkpoint: Path) -> ModelShape:
    """Read the shape of a checkpoint in any layout that pulse-edge loads; no weight is read.

    Raises:
        CheckpointError: the folder holds no readable configuration or weights, or an unknown model.
    """
    file = checkpoint / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({type(error).__name__}). Give the folder of a complete checkpoint."
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} is not an object. Restore the original file.")
    headers = [_header(path) for path in sorted(checkpoint.glob("*.safetensors"))]
    if not any(headers):
        raise CheckpointError(
            f"{checkpoint} holds no *.safetensors. Give the folder of a complete checkpoint."
        )
    entries = {name: entry for header in headers for name, entry in header.items()}
    weights = dict(_weight(name, entry) for name, entry in entries.items())
    kinds = {entry["dtype"] for name, entry in entries.items() if name.endswith(INTEGERS)}
    shape = shape_of(pulse_config(raw, weights), checkpoint.resolve().name)
    return replace(shape, integers="int4" if "U8" in kinds else "int8" if kinds else None)


def shape_of(config: Mapping[str, Any], name: str) -> ModelShape:
    """Return the shape that a configuration in PulseConfig's fields describes.

    Args:
        config: ``text_config``, ``vision_config``, ``vision_feature_layer`` and the rest, as plain values.
        name: of the model.

    Raises:
        CheckpointError: a field is missing or unusable, or the architecture is not covered.
    """
    try:
        text, vision = dict(config["text_config"]), dict(config["vision_config"])
        if text.get("model_type") not in ("llama", "qwen2"):
            raise CheckpointError(
                f"The language model is {text.get('model_type')!r}; a plan covers llama and qwen2 decoders. "
                "Use a checkpoint with one of those."
            )
        heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
        kv_heads = int(text.get("num_key_value_heads") or heads)
        head_dim = int(text.get("head_dim") or hidden // heads)
        ffn = int(text["intermediate_size"])
        attention = (heads + 2 * kv_heads) * head_dim
        biases = attention if text["model_type"] == "qwen2" else 0
        if text["model_type"] == "llama" and text.get("attention_bias"):
            biases = attention + hidden
        shape = ModelShape(
            name=name,
            layers=int(text["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=ffn,
            vocab=int(text["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
            context=int(text.get("max_position_embeddings", 2048)),
            biases=biases + (2 * ffn + hidden if text.get("mlp_bias") else 0),
            tower=_tower(vision, config, hidden),
            keep=None if config.get("keep_tokens") is None else int(config["keep_tokens"]),
        )
        if min(shape.layers, hidden, heads, kv_heads, head_dim, ffn, shape.vocab, shape.context) < 1:
            raise ValueError("a size below 1")
        return shape
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"The configuration of {name} does not describe a model ({type(error).__name__}: {error}). "
            "Restore the original config.json."
        ) from error


def _tower(vision: Mapping[str, Any], config: Mapping[str, Any], hidden: int) -> Tower:
    kind = vision.get("model_type")
    if kind == "clip_vision_model":
        tower = _clip(vision, int(config["vision_feature_layer"]), config["vision_feature_select_strategy"])
    elif kind == "pulse_conv":
        tower = _convolutions(vision)
    else:
        raise CheckpointError(
            f"The vision tower is {kind!r}; a plan covers clip_vision_model and pulse_conv. "
            "Use a checkpoint with one of those."
        )
    width = int(vision["hidden_size"])
    linear = width * hidden + hidden * hidden
    return Tower(
        parameters=tower.parameters,
        run_parameters=tower.run_parameters,
        projector=linear + 2 * hidden,
        tokens=tower.tokens,
        flops=tower.flops + 2 * linear * tower.tokens,
        live=max(tower.live, 2 * hidden * tower.tokens),
    )


def _clip(vision: Mapping[str, Any], feature_layer: int, select: str) -> Tower:
    """CLIP's ViT (Radford et al., 2021): pre-norm layers, all biased; patches without a bias."""
    h, f, layers = (int(vision[k]) for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, patch = int(vision["num_attention_heads"]), int(vision["patch_size"])
    side = int(vision.get("image_size", TILE_SIZE)) // patch
    patches, tokens = side**2, side**2 + 1  # the class token
    pixels = int(vision.get("num_channels", 3)) * patch**2
    layer = 4 * (h * h + h) + 2 * h * f + f + h + 4 * h
    outside = h + pixels * h + tokens * h + 2 * h
    run = feature_layer + layers + 1 if feature_layer < 0 else feature_layer
    work = 2 * tokens * (4 * h * h + 2 * h * f) + 4 * tokens**2 * h
    return Tower(
        parameters=outside + layers * layer + 2 * h,
        run_parameters=outside + run * layer,
        projector=0,
        tokens=tokens if select == "full" else patches,
        flops=run * work + 2 * patches * pixels * h,
        live=tokens * (3 * h + max(3 * h, f)) + heads * tokens**2,
    )


def _convolutions(vision: Mapping[str, Any]) -> Tower:
    """pulse-nano's tower, stage by stage as ``model/tower.py`` builds it."""
    side, before = int(vision.get("image_size", TILE_SIZE)), 3
    parameters = flops = live = 0
    inner = vision.get("inner") or vision["widths"]
    stages = zip(vision["widths"], inner, vision["strides"], vision["depths"], strict=True)
    for index, (width, within, stride, depth) in enumerate(stages):
        side //= stride
        kernel = stride if index == 0 else 3
        down, block = before * width * kernel**2, 2 * width * within * 9
        parameters += down + 2 * width + depth * (block + 2 * width + 2 * within)
        flops += 2 * side**2 * (down + depth * block)
        live = max(live, 3 * width * side**2)
        before = width
    tokens, layers = side**2, int(vision.get("context_layers", 0))
    page = MAX_TILES * tokens  # the context layers see all tiles of a page
    mlp = int(vision.get("context_mlp") or 2 * before)
    parameters += page * before + layers * (4 * before**2 + 2 * before * mlp + 9 * before + mlp)
    flops += layers * tokens * (8 * before**2 + 4 * before * mlp + 4 * page * before)
    return Tower(parameters, parameters, 0, tokens, flops, live)


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """Read one file's header, dtype and shape of every weight; its offsets say how long the file must be."""
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > _HEADER_LIMIT:
                raise ValueError("no header")
            entries = json.loads(stream.read(size))
            entries.pop("__metadata__", None)
            end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
            if stream.seek(0, 2) != 8 + size + end:
                raise ValueError("not as long as its header says")
        return {
            name: {"dtype": str(entry["dtype"]), "shape": tuple(int(side) for side in entry["shape"])}
            for name, entry in entries.items()
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(
            f"{file} is damaged or cut short ({type(error).__name__}). Download this file again."
        ) from error


def _weight(name: str, entry: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """Return a weight's canonical name and shape; integers (model/quantized.py) stand for all of it."""
    shape: tuple[int, ...] = entry["shape"]
    if name.endswith(INTEGERS):
        name = name.removesuffix(INTEGERS)
        if entry["dtype"] == "U8" and shape:  # two of four bits in a byte
            shape = (*shape[:-1], 2 * shape[-1])
    return canonical(name), shape
