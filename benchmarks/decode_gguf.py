"""Write a plain Llama checkpoint as GGUF for llama.cpp, which `benchmarks/decode.py` measures against.

    python benchmarks/decode_gguf.py CHECKPOINT OUTPUT.gguf        # needs: pip install gguf

Linear layers and embedding become Q4_0 and the head Q8_0: what llama.cpp calls Q4_0, but for the head, which
its own tool makes Q6_K. The layout is that of llama.cpp's converter: rows of queries and keys are put in the
order that its rotary embedding expects.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tensors(folder: Path) -> dict[str, NDArray[np.uint16]]:
    """Map the bfloat16 weights of a checkpoint of one shard."""
    (file,) = folder.glob("*.safetensors")
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    data = np.memmap(file, np.uint8, "r", 8 + size)
    return {
        name: data[slice(*entry["data_offsets"])].view(np.uint16).reshape(entry["shape"])
        for name, entry in header.items()
    }


def named(name: str) -> str:
    """The name of a weight in GGUF."""
    stem = name.removesuffix(".weight")
    if stem in OUTER:
        return f"{OUTER[stem]}.weight"
    _, _, i, rest = stem.split(".", 3)
    return f"blk.{i}.{LAYER[rest]}.weight"


def ordered(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Put the halves of every head's rows, which rotate together, next to each other."""
    rows, columns = values.shape
    pairs = values.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def main() -> None:
    """Convert."""
    import gguf

    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(output, "llama")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, config["vocab_size"]))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(i) for i in range(len(words))])
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (len(words) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, raw in tensors(folder).items():
        values = (raw.astype(np.uint32) << 16).view(np.float32)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = ordered(values, heads if "q_proj" in name else kv_heads)
        if values.ndim == 1:
            writer.add_tensor(named(name), values)
            continue
        kind = gguf.GGMLQuantizationType.Q8_0 if name == "lm_head.weight" else gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor(named(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
