"""Shape of the language model and its rotary tables: what every target's decoder is built from.

Covered are decoders of Llama's form (grouped-query attention and biases included, so Qwen2's too) with
plain rotary embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pulse_edge.errors import CheckpointError
from pulse_edge.model.layouts import TABLE
from pulse_edge.model.places import positions

Weights = Callable[[str], NDArray[np.float32]]
_ATTENTION: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP: Final = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class DecoderShape:
    """Shape of a Llama-like decoder.

    Attributes:
        layers, hidden, heads, kv_heads, head_dim, vocab: as in the configuration.
        context: longest sequence, image included.
        theta: base of the rotary embedding.
        epsilon: of the norms.
        biased: projections that have a bias, e.g. ``q_proj``.
        mlp: width of the feed-forward part.
        spread: where pruned visual tokens stand, see ``model.places.positions``.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    theta: float
    epsilon: float
    biased: frozenset[str] = frozenset()
    mlp: int = 0
    spread: tuple[int, int, int] | None = None

    def linears(self, i: int) -> Iterator[tuple[str, tuple[int, int]]]:
        """Names inside the language model, and shapes [N, K], of the linear layers of layer ``i``."""
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield f"layers.{i}.self_attn.q_proj", (query, self.hidden)
        yield f"layers.{i}.self_attn.k_proj", (keys, self.hidden)
        yield f"layers.{i}.self_attn.v_proj", (keys, self.hidden)
        yield f"layers.{i}.self_attn.o_proj", (self.hidden, query)
        yield f"layers.{i}.mlp.gate_proj", (self.mlp, self.hidden)
        yield f"layers.{i}.mlp.up_proj", (self.mlp, self.hidden)
        yield f"layers.{i}.mlp.down_proj", (self.hidden, self.mlp)

    def weights(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Canonical names and shapes of all weights but the head's."""
        yield TABLE, (self.vocab, self.hidden)
        for i in range(self.layers):
            for name, shape in self.linears(i):
                yield f"text.{name}.weight", shape
                if name.rpartition(".")[2] in self.biased:
                    yield f"text.{name}.bias", shape[:1]
            for norm in ("input_layernorm", "post_attention_layernorm"):
                yield f"text.layers.{i}.{norm}.weight", (self.hidden,)
        yield "text.norm.weight", (self.hidden,)


def decoder_shape(config: Any) -> DecoderShape:
    """Read the shape from a transformers configuration of a Llama or Qwen2 decoder.

    Raises:
        CheckpointError: the decoder has something that the graph does not cover.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    needs = {
        f"an architecture {config.model_type!r}": config.model_type not in ("llama", "qwen2"),
        f"an activation {config.hidden_act!r}": config.hidden_act != "silu",
        "scaled rotary embeddings": rope.get("rope_type", rope.get("type", "default")) != "default",
        "partial rotary embeddings": rope.get("partial_rotary_factor", 1.0) != 1.0,
        "sliding windows": bool(getattr(config, "use_sliding_window", False)),
        "uneven attention heads": bool(heads % kv_heads or head_dim % 2),
    }
    if any(needs.values()):
        missing = ", ".join(what for what, needed in needs.items() if needed)
        raise CheckpointError(
            f"The language model needs {missing}, which the exporter does not cover. "
            "Use a checkpoint with a Llama or Qwen2 decoder and plain rotary embeddings."
        )
    biased = set(_ATTENTION if getattr(config, "attention_bias", False) else ())
    if config.model_type == "qwen2":
        biased = set(_ATTENTION) - {"o_proj"}
    if getattr(config, "mlp_bias", False):
        biased |= set(_MLP)
    return DecoderShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        theta=float(rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0),
        epsilon=config.rms_norm_eps,
        biased=frozenset(biased),
        mlp=config.intermediate_size,
        spread=tuple(spread) if (spread := getattr(config, "spread", None)) else None,
    )


def rotary_tables(shape: DecoderShape) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cosine and sine, float32 [context, head_dim], for the places of tokens.

    Angles are rounded to float32, as in the models' training; in float16 they are wrong from position
    2,048 on, where it holds even numbers only.
    """
    frequency = (shape.theta ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)).astype(np.float32)
    places = np.array(positions(shape.context, shape.spread), np.float32)
    angle = places[:, None] * frequency
    angle = np.concatenate([angle, angle], axis=1)
    return np.cos(angle), np.sin(angle)
