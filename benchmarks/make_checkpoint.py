"""Write a checkpoint of PULSE-7B's shapes with random weights, for measuring an export.

    python benchmarks/make_checkpoint.py FOLDER [--size 7b|1b|500m|mini] [--layout llava|hf] [--plain FOLDER]

``7b`` is PULSE-7B as released: 7.06 billion parameters in bfloat16, 14.1 GB in three shards. ``1b`` has the
same vision tower and a language model of TinyLlama's shape (22 layers, grouped-query attention), the largest
that the other exporters manage in 16 GB. ``500m`` is the recipe pulse-0.5b, ``mini`` about 20 million
parameters in the same form; both have towers with 144 tokens a tile. ``--plain`` writes the same language
model once more as a plain Llama checkpoint, which is all that they read. Answers of such a model mean
nothing; sizes, times and memory are those of the real one. Two runs give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOKENIZER = Path(__file__).parents[1] / "pulse_edge/assets/pulse-nano"
SIZES: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "shard": 4.95e9,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "shard": 1.5e9,
    },
    "500m": {
        "hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 8, "shard": 1.5e9,
        "vision": {"width": 768, "mlp": 3072, "layers": 12, "patch": 28},
    },
    "mini": {
        "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8,
        "num_attention_heads": 6, "num_key_value_heads": 2, "shard": 1.5e9, "vocab_size": 4096,
        "vision": {"width": 192, "mlp": 768, "layers": 6, "patch": 28},
    },
}  # fmt: skip
VOCABULARY, CONTEXT = 32000, 4096
CLIP = {"width": 1024, "mlp": 4096, "layers": 24, "patch": 14}  # ViT-L/14-336
IMAGE = 336
POOL = 1 << 24  # random values that are drawn once; every tensor takes them from another place


def language_shapes(size: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama, as in a plain checkpoint."""
    hidden, mlp = size["hidden_size"], size["intermediate_size"]
    keys = hidden // size["num_attention_heads"] * size["num_key_value_heads"]
    vocabulary = size.get("vocab_size", VOCABULARY)
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for i in range(size["num_hidden_layers"]):
        for name, shape in (
            ("self_attn.q_proj", (hidden, hidden)),
            ("self_attn.k_proj", (keys, hidden)),
            ("self_attn.v_proj", (keys, hidden)),
            ("self_attn.o_proj", (hidden, hidden)),
            ("mlp.gate_proj", (mlp, hidden)),
            ("mlp.up_proj", (mlp, hidden)),
            ("mlp.down_proj", (hidden, mlp)),
            ("input_layernorm", (hidden,)),
            ("post_attention_layernorm", (hidden,)),
        ):
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def vision_shapes(size: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a CLIP tower, by default ViT-L/14-336, and the projector, in LLaVA's layout."""
    vision, hidden = size.get("vision", CLIP), size["hidden_size"]
    width, mlp, patch = vision["width"], vision["mlp"], vision["patch"]
    tower = "model.vision_tower.vision_tower.vision_model."
    yield f"{tower}embeddings.class_embedding", (width,)
    yield f"{tower}embeddings.patch_embedding.weight", (width, 3, patch, patch)
    yield f"{tower}embeddings.position_embedding.weight", ((IMAGE // patch) ** 2 + 1, width)
    norms = ["pre_layrnorm", "post_layernorm"]
    for i in range(vision["layers"]):
        layer = f"encoder.layers.{i}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        widths = [(f"self_attn.{p}_proj", width, width) for p in "qkv"] + [
            ("self_attn.out_proj", width, width), ("mlp.fc1", mlp, width), ("mlp.fc2", width, mlp),
        ]  # fmt: skip
        for name, out, into in widths:
            yield f"{tower}{layer}.{name}.weight", (out, into)
            yield f"{tower}{layer}.{name}.bias", (out,)
    for name in norms:
        yield f"{tower}{name}.weight", (width,)
        yield f"{tower}{name}.bias", (width,)
    for index, into in ((0, width), (2, hidden)):
        yield f"model.mm_projector.{index}.weight", (hidden, into)
        yield f"model.mm_projector.{index}.bias", (hidden,)


def hugging_face(name: str) -> str:
    """The name of a weight as transformers 4 writes it on the hub."""
    for old, new in (
        ("model.vision_tower.vision_tower.", "vision_tower."),
        ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
        ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def values(name: str, shape: tuple[int, ...], pool: NDArray[np.uint16], start: int) -> Iterator[bytes]:
    """The bytes of one tensor in bfloat16, in pieces: gains are 1, others normal with a deviation of 0.02."""
    count = int(np.prod(shape))
    if "norm" in name and name.endswith("weight"):
        yield np.full(count, 0x3F80, np.uint16).tobytes()
        return
    while count:
        piece = pool[start : start + count]
        yield piece.tobytes()
        count -= len(piece)
        start = (start * 7 + 13) % (POOL // 2)


def write(folder: Path, shapes: dict[str, tuple[int, ...]], limit: float) -> None:
    """Write the shards and their index."""
    rng = np.random.default_rng(0)
    pool = (rng.standard_normal(POOL, np.float32) * 0.02).view(np.uint32)
    pool = ((pool + 0x8000) >> 16).astype(np.uint16)
    shards: list[list[str]] = [[]]
    room = limit
    for name, shape in shapes.items():
        room -= 2 * int(np.prod(shape))
        if room < 0 and shards[-1]:
            shards.append([])
            room = limit - 2 * int(np.prod(shape))
        shards[-1].append(name)
    where = {}
    for number, names in enumerate(shards, 1):
        file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            size = 2 * int(np.prod(shapes[name]))
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [offset, offset + size]}
            offset += size
            where[name] = file.name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                for piece in values(name, shapes[name], pool, int(rng.integers(POOL // 2))):
                    stream.write(piece)
    index = {
        "metadata": {"total_size": 2 * sum(int(np.prod(s)) for s in shapes.values())},
        "weight_map": where,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def text_fields(size: dict[str, Any]) -> dict[str, Any]:
    """What ``config.json`` says of the language model."""
    shape = {name: value for name, value in size.items() if name not in ("shard", "vision")}
    return {
        "vocab_size": VOCABULARY, **shape, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip


def config(size: dict[str, Any], layout: str) -> dict[str, Any]:
    """The ``config.json`` of a layout."""
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    tower = size.get("vision", CLIP)
    if layout == "llava":
        if tower is not CLIP:
            raise SystemExit("LLaVA's layout has PULSE's tower only; use --layout hf.")
        return {
            "model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"], **text_fields(size),
            "mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": "anyres",
            "mm_hidden_size": CLIP["width"], "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch", "mm_patch_merge_type": "flat",
            "mm_use_im_start_end": False, "image_grid_pinpoints": pinpoints,
        }  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "hidden_size": tower["width"], "intermediate_size": tower["mlp"],
        "num_hidden_layers": tower["layers"], "num_attention_heads": tower["width"] // 64,
        "image_size": IMAGE, "patch_size": tower["patch"], "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5, "projection_dim": 768,
    }  # fmt: skip
    return {
        "model_type": "pulse", "merge": "flat", "image_grid_pinpoints": pinpoints,
        "text_config": {"model_type": "llama", **text_fields(size)}, "vision_config": vision,
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu", "image_token_index": -200, "tie_word_embeddings": False,
    }  # fmt: skip


def copy_tokenizer(folder: Path) -> None:
    """Give a checkpoint pulse-nano's tokenizer; its ids are valid for any larger vocabulary."""
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)


def make(folder: Path, size: dict[str, Any], layout: str, plain: Path | None = None) -> None:
    """Write a checkpoint, and its language model once more as a plain one."""
    language = dict(language_shapes(size))
    shapes = {**language, **dict(vision_shapes(size))}
    if layout == "hf":
        shapes = {hugging_face(name): shape for name, shape in shapes.items()}
    folder.mkdir(parents=True)
    write(folder, shapes, size["shard"])
    (folder / "config.json").write_text(json.dumps(config(size, layout), indent=1))
    copy_tokenizer(folder)
    if plain is not None:
        plain.mkdir(parents=True)
        write(plain, language, 1e15)
        copy_tokenizer(plain)
        about = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
        (plain / "config.json").write_text(json.dumps({**about, **text_fields(size)}, indent=1))


def main() -> None:
    """Write what is asked for."""
    parser = argparse.ArgumentParser(description="Write a checkpoint of PULSE-7B's shapes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="7b")
    parser.add_argument("--layout", choices=("llava", "hf"), default="llava")
    parser.add_argument("--plain", type=Path, help="also the language model alone, here")
    args = parser.parse_args()
    make(args.folder, SIZES[args.size], args.layout, args.plain)


if __name__ == "__main__":
    main()
